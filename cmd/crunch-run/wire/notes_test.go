package wire

import (
	"slices"
	"testing"

	"crunch-oci/supervisor/config"
)

func TestNotes(t *testing.T) {
	for name, c := range map[string]struct {
		job  Job
		want []string
	}{
		"by hand": {Job{}, []string{"not starting a local keepstore process because KeepBuffers=0 in config"}},
		"by the cloud dispatcher": {
			Job{Message: &config.Message{}},
			[]string{"not starting a local keepstore process because KeepBuffers=0 in config"},
		},
		"with everything": {
			Job{Message: &config.Message{KeepBuffers: 2, EC2SpotCheck: true}},
			[]string{
				"not starting a local keepstore process because this version has none",
			},
		},
	} {
		if got := c.job.notes(); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n%q\nwant\n%q", name, got, c.want)
		}
	}
}
