package enricher

import (
	"bytes"
	"compress/flate"
	"io"
	"unicode/utf8"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// maxSDPBytes bounds what a fabric keeps of one description; real ones have 5
// to 30 KB.
const maxSDPBytes = 64 << 10

// deflater compresses the SDPs that the state keeps: they are its largest part
// and shrink to a quarter. The zero value is ready.
type deflater struct{ writer *flate.Writer }

func (d *deflater) deflate(text string) []byte {
	var packed bytes.Buffer
	if d.writer == nil {
		// An error is possible only for an unknown level.
		d.writer, _ = flate.NewWriter(&packed, flate.DefaultCompression)
	} else {
		d.writer.Reset(&packed)
	}
	_, _ = io.WriteString(d.writer, text) // a bytes.Buffer takes everything
	_ = d.writer.Close()
	return packed.Bytes()
}

// inflate undoes deflate. What cannot be read gives an empty text: only this
// package writes it, and a snapshot is checked by its sum.
func inflate(packed []byte) string {
	if len(packed) == 0 {
		return ""
	}
	text, err := io.ReadAll(flate.NewReader(bytes.NewReader(packed)))
	if err != nil {
		return ""
	}
	return string(text)
}

// keepSDPs remembers the descriptions that the message brings; an empty one
// means unchanged.
func (f *fabric) keepSDPs(sdps *callscopev1.SdpSubmission, d *deflater) {
	if sdps.LocalSdp != "" {
		f.s.LocalSdp = d.deflate(f.cut(sdps.LocalSdp))
	}
	if sdps.RemoteSdp != "" {
		f.s.RemoteSdp = d.deflate(f.cut(sdps.RemoteSdp))
	}
}

func (f *fabric) cut(sdp string) string {
	if len(sdp) <= maxSDPBytes {
		return sdp
	}
	f.s.SdpTruncated = true
	end := maxSDPBytes
	for !utf8.RuneStart(sdp[end]) { // valid text, so at most three times
		end--
	}
	return sdp[:end]
}
