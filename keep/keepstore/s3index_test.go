package keepstore

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// The index has every block that a GET would find: also those in the trash that
// were written or touched in the moment before they were trashed. Their time
// stamps are those of recent/.
func TestS3Index(t *testing.T) {
	for _, prefixLength := range []int{0, 3} {
		t.Run(fmt.Sprint("PrefixLength ", prefixLength), func(t *testing.T) {
			g := newGateway(t)
			c := g.store(func(_ *Config, s *S3Config) { s.PrefixLength, s.IndexPageSize = prefixLength, 2 })
			var want []string
			for i := range 40 {
				data := []byte(fmt.Sprint("block ", i))
				hash := md5hex(data)
				key := hash
				if prefixLength > 0 {
					key = hash[:prefixLength] + "/" + hash
				}
				const hour = time.Hour
				put := func(key string, data []byte, age time.Duration) {
					g.Write(key, data)
					g.age(key, age)
				}
				shown := -1 * hour // age of what is listed
				switch i % 5 {
				case 0: // as it is written
					put(key, data, 20*hour)
					put("recent/"+key, nil, 10*hour)
					shown = 10 * hour
				case 1: // by somebody else
					put(key, data, 30*hour)
					shown = 30 * hour
				case 2: // trashed
					put("trash/"+key, data, 40*hour)
					put("recent/"+key, nil, 900*hour)
				case 3: // trashed by mistake
					put("trash/"+key, data, 50*hour)
					put("recent/"+key, nil, 60*hour)
					shown = 60 * hour
				case 4: // trashed and written again
					put("trash/"+key, data, 50*hour)
					put(key, data, 5*hour)
					put("recent/"+key, nil, 4*hour)
					shown = 4 * hour
				}
				if shown >= 0 {
					want = append(want, fmt.Sprintf("%s+%d %dh", hash, len(data), shown/hour))
				}
				if r := c.do("HEAD", "/"+c.srv.sign(hash+"+"+fmt.Sprint(len(data)), userToken), userToken, nil); i%5 != 3 && (r.status == 200) != (shown >= 0) {
					t.Errorf("block %d: %d", i, r.status)
				}
			}
			slices.Sort(want)
			for _, prefix := range []string{"", "3", "3f", "a1b", want[7][:5]} {
				var got, expected []string
				for line := range strings.Lines(c.do("GET", "/index/"+prefix, rootToken, nil).body) {
					var ns int64
					loc, stamp, _ := strings.Cut(strings.TrimSpace(line), " ")
					if _, err := fmt.Sscan(stamp, &ns); err == nil {
						got = append(got, fmt.Sprintf("%s %.0fh", loc, time.Since(time.Unix(0, ns)).Hours()))
					}
				}
				for _, line := range want {
					if strings.HasPrefix(line, prefix) {
						expected = append(expected, line)
					}
				}
				if !slices.Equal(got, expected) {
					t.Errorf("index of %q:\n%s\nwant\n%s", prefix, strings.Join(got, "\n"), strings.Join(expected, "\n"))
				}
			}
		})
	}
}
