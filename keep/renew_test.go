package keep_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// A file that stays open can be read for longer than the signatures in its
// manifest last, a program's stdin for example.
func TestReadBeyondSignatures(t *testing.T) {
	for name, tt := range map[string]struct {
		first    keep.Signer
		expiry   time.Duration // of the first signatures
		renewed  time.Duration // of those after; 0: there are none
		ok       bool
		requests int // that Keep gets
	}{
		"ended":              {signer, -time.Minute, time.Hour, true, 2},
		"at their end":       {signer, 30 * time.Second, time.Hour, true, 2},
		"refused":            {keep.Signer{Key: "other", TTL: time.Hour}, 30 * time.Minute, time.Hour, true, 4},
		"good":               {signer, time.Hour, 0, true, 2},
		"no newer ones":      {signer, -time.Minute, 0, false, 2},
		"newer ones useless": {signer, -time.Hour, -time.Minute, false, 2},
	} {
		t.Run(name, func(t *testing.T) {
			srv := &keeptest.Server{Signer: signer}
			client := keeptest.NewClient(t, nil, srv.Start(t))
			a, b := srv.Put([]byte("first ")), srv.Put([]byte("second"))
			manifest := ". " + a.WithoutHints().String() + " " + b.WithoutHints().String() + " 0:12:f\n"
			sign := func(s keep.Signer, expiry time.Duration) string {
				return s.SignManifest(manifest, keeptest.Token, time.Now().Add(expiry))
			}
			c := newCollection(t, sign(tt.first, tt.expiry), client, 0)
			asked := 0
			c.RenewWith(func(context.Context) (string, error) {
				if asked++; tt.renewed == 0 {
					return "", errors.New("the API server is away")
				}
				return sign(signer, tt.renewed), nil
			})
			f, err := c.Open("f")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			text, err := io.ReadAll(f)
			if ok := err == nil && bytes.Equal(text, []byte("first second")); ok != tt.ok {
				t.Errorf("%q, %v", text, err)
			}
			var re *keep.ReadError
			if !tt.ok && (!errors.As(err, &re) || !re.Refused()) {
				t.Errorf("not the refusal: %v", err)
			}
			if n := len(srv.Requests()); n > tt.requests || asked > 1 {
				t.Errorf("Keep was asked %d times, the API server %d times", n, asked)
			}
		})
	}
}
