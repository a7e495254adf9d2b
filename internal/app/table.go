package app

import (
	"bufio"
	"io"
	"strings"

	"github.com/rivo/uniseg"
)

// table is text in aligned columns. Values are never cut or wrapped; line breaks in them are shown as \n, so that one
// row is one line.
type table struct {
	header []string
	right  []bool // columns that are aligned to the right
	rows   [][]string
}

var oneLiner = strings.NewReplacer("\\", `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`)

func (t *table) add(values ...string) {
	row := make([]string, len(values))
	for i, v := range values {
		row[i] = v
		if strings.ContainsAny(v, "\n\r\t") {
			row[i] = oneLiner.Replace(v)
		}
	}
	t.rows = append(t.rows, row)
}

func (t *table) write(w io.Writer) error {
	widths := make([]int, len(t.header))
	all := append([][]string{t.header}, t.rows...)
	for _, row := range all {
		for i, v := range row {
			widths[i] = max(widths[i], uniseg.StringWidth(v))
		}
	}
	out := bufio.NewWriter(w)
	line := func(row []string) {
		for i, v := range row {
			if i > 0 {
				out.WriteString("  ")
			}
			pad := strings.Repeat(" ", widths[i]-uniseg.StringWidth(v))
			switch {
			case i < len(t.right) && t.right[i]:
				out.WriteString(pad + v)
			case i == len(row)-1:
				out.WriteString(v)
			default:
				out.WriteString(v + pad)
			}
		}
		out.WriteByte('\n')
	}
	line(t.header)
	rule := make([]string, len(widths))
	for i, n := range widths {
		rule[i] = strings.Repeat("-", n)
	}
	line(rule)
	for _, row := range t.rows {
		line(row)
	}
	return out.Flush()
}
