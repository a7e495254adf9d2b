package stage

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"strings"

	"github.com/callscope/callscope/internal/stream"
)

// Emitted is an output as it goes into the output partition.
type Emitted struct {
	Key, Value []byte // Value holds the whole record, origin and prev included
	Origin     Origin
	Prev       *Origin // nil for the first output of the partition
}

// folder is a machine and the origin of its last output: the part of a
// partition that live stages and replay share.
type folder struct {
	machine Machine
	last    *Origin
}

// stepError is a record that the machine cannot take. Its text begins with the
// kind of reason that stream.Reject wants. Broken means that the machine's
// state may be half changed and must be built again.
type stepError struct {
	err    error
	broken bool
	panic  bool
}

func (e *stepError) Error() string { return e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// step runs one record through the machine. Every error is a *stepError, and
// then no output counts. A panic becomes an error with a hash of the stack, so
// that equal panics can be counted without reading each.
func (f *folder) step(in Input) (emitted []Emitted, err error) {
	defer func() {
		if r := recover(); r != nil {
			emitted = nil
			err = &stepError{err: fmt.Errorf("panic: stack %s: %v", stackHash(), r), broken: true, panic: true}
		}
	}()
	outputs, err := f.machine.Step(in)
	if err != nil {
		return nil, &stepError{err: fmt.Errorf("refused: %w", err)}
	}
	if len(outputs) == 0 {
		return nil, nil
	}
	emitted = make([]Emitted, len(outputs))
	prev := f.last
	for i, out := range outputs {
		origin := Origin{Offset: in.Offset, Index: uint32(i)}
		value, err := encodeOutput(out.Message, origin, prev)
		if err != nil {
			return nil, &stepError{err: fmt.Errorf("bad_output: output %d: %w", i, err), broken: true}
		}
		if size := len(out.Key) + len(value); size > stream.MaxRecordBytes {
			return nil, &stepError{err: fmt.Errorf("output_too_large: output %d has %d bytes, more than the %d of a record", i, size, stream.MaxRecordBytes), broken: true}
		}
		emitted[i] = Emitted{Key: out.Key, Value: value, Origin: origin, Prev: prev}
		prev = &emitted[i].Origin
	}
	last := *prev
	f.last = &last
	return emitted, nil
}

// stackHash names the stack of a panic by its functions and lines, from step
// to where it happened. It is called by the function that recovers.
func stackHash() string {
	var callers [64]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(3, callers[:])])
	h := sha256.New()
	for {
		frame, more := frames.Next()
		if !more || strings.HasSuffix(frame.Function, "stage.(*folder).step") {
			break
		}
		fmt.Fprintf(h, "%s:%d\n", frame.Function, frame.Line)
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// Fold runs a fresh machine over inputs and calls emit for every output, with
// the same origins that a live partition gives them. Records that the live
// stage would set aside are skipped and handed to rejected, which may be nil.
// With hasOrigins, duplicates are dropped as in a live stage and a gap is an
// error that wraps ErrGap.
//
// After a panic the machine is built again from newMachine and the records
// before it, so inputs is iterated again; no output is emitted twice. An error
// of emit ends the fold and is returned.
func Fold(newMachine func() Machine, hasOrigins bool, inputs iter.Seq[Input], emit func(Emitted) error, rejected func(offset int64, reason error)) error {
	skip := map[int64]bool{}
	var done *Origin // of the last output emitted
	for {
		again, err := foldOnce(newMachine(), hasOrigins, inputs, skip, &done, emit, rejected)
		if err != nil || !again {
			return err
		}
	}
}

func foldOnce(m Machine, hasOrigins bool, inputs iter.Seq[Input], skip map[int64]bool, done **Origin,
	emit func(Emitted) error, rejected func(int64, error)) (again bool, err error) {
	f := folder{machine: m}
	var filter OriginFilter
	for in := range inputs {
		verdict, _, origin, err := judge(in.Value, hasOrigins, &filter)
		if verdict == Duplicate {
			continue
		}
		if verdict == Gap {
			return false, fmt.Errorf("folding offset %d: %w: %w", in.Offset, ErrGap, err)
		}
		if origin != nil {
			filter.accept(*origin)
		}
		var emitted []Emitted
		if err == nil {
			if skip[in.Offset] {
				continue
			}
			emitted, err = f.step(in)
		}
		if err != nil {
			if !skip[in.Offset] {
				skip[in.Offset] = true
				if rejected != nil {
					rejected(in.Offset, err)
				}
			}
			var bad *stepError
			if errors.As(err, &bad) && bad.broken {
				return true, nil
			}
			continue
		}
		for _, e := range emitted {
			if !e.Origin.After(*done) {
				continue
			}
			if err := emit(e); err != nil {
				return false, err
			}
			origin := e.Origin
			*done = &origin
		}
	}
	return false, nil
}

// judge reads the header of an input record and decides what to do with it:
// Accept with the error nil: step it; Accept with an error: set it aside;
// Duplicate: drop it; Gap, with an error that says which: stop. uid is never
// empty. origin is set where the filter has to remember it.
func judge(value []byte, hasOrigins bool, filter *OriginFilter) (v Verdict, uid []byte, origin *Origin, err error) {
	uid, origin, prev, err := ReadHeader(value)
	if len(uid) == 0 || err != nil {
		// Nobody writes such records. They still need a name, because the
		// snapshot tells by it whether the topic is the one it belongs to.
		sum := sha256.Sum256(value)
		uid = sum[:16]
	}
	if err != nil {
		return Accept, uid, nil, fmt.Errorf("bad_header: %w", err)
	}
	if !hasOrigins {
		return Accept, uid, nil, nil
	}
	if origin == nil {
		return Accept, uid, nil, errors.New("no_origin: a record of another stage's topic must have one")
	}
	switch v := filter.check(origin, prev); v {
	case Duplicate:
		return v, uid, nil, nil
	case Gap:
		last := "none"
		if filter.last != nil {
			last = filter.last.String()
		}
		return v, uid, nil, fmt.Errorf("output %s of the stage before follows %s, but the last one seen is %s", origin, prev, last)
	}
	return Accept, uid, origin, nil
}
