package mount

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf16"
)

// recordJSON is the content of .arvados#collection: the record with its
// manifest, with sorted keys, four spaces of indent and nothing but ASCII, as
// the reference writes it.
func recordJSON(rec Record) []byte {
	fields := map[string]any{"uuid": rec.PortableDataHash}
	for k, v := range rec.Fields {
		fields[k] = v
	}
	if rec.Fields != nil && fields["modified_at"] == nil && !rec.ModifiedAt.IsZero() {
		fields["modified_at"] = rec.ModifiedAt.UTC().Format(time.RFC3339Nano)
	}
	fields["portable_data_hash"] = rec.PortableDataHash
	fields["manifest_text"] = rec.ManifestText
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "    ")
	if err := enc.Encode(fields); err != nil {
		// A field that cannot be encoded must not hide the manifest.
		return recordJSON(Record{PortableDataHash: rec.PortableDataHash, ManifestText: rec.ManifestText})
	}
	return ascii(b.Bytes())
}

// ascii writes what is beyond ASCII as \uXXXX. In JSON such bytes are only in
// strings.
func ascii(text []byte) []byte {
	clean := true
	for _, c := range text {
		if c >= 0x80 {
			clean = false
			break
		}
	}
	if clean {
		return text
	}
	const hex = "0123456789abcdef"
	var b strings.Builder
	unit := func(u uint16) {
		b.WriteString(`\u`)
		for shift := 12; shift >= 0; shift -= 4 {
			b.WriteByte(hex[u>>shift&15])
		}
	}
	for _, c := range string(text) {
		switch {
		case c < 0x80:
			b.WriteByte(byte(c))
		case c < 0x10000:
			unit(uint16(c))
		default:
			hi, lo := utf16.EncodeRune(c)
			unit(uint16(hi))
			unit(uint16(lo))
		}
	}
	return []byte(b.String())
}
