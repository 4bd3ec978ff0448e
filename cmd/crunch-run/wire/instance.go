package wire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"crunch-oci/cloud"
	"crunch-oci/supervisor"
	"crunch-oci/supervisor/dispatch"
	"crunch-oci/supervisor/joblog"
	"crunch-oci/supervisor/prices"
)

// readPrices reads the dispatcher's list of prices. None is no error.
func (j Job) readPrices() ([]prices.Price, error) {
	data, err := dispatch.Dir(j.Site.LockDir).ReadPrices()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	list, err := prices.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	return list, nil
}

// metadataVariable is how Amazon's own programs are told of another place.
const metadataVariable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"

// interruptions waits for the cloud to announce that it will take the instance
// away, if the dispatcher says that it may.
func (j Job) interruptions(log *joblog.Log) func(context.Context) (supervisor.Interruption, error) {
	if j.Message == nil || !j.Message.EC2SpotCheck {
		return nil
	}
	base := os.Getenv(metadataVariable)
	if base == "" {
		base = cloud.DefaultMetadata
	}
	watch := cloud.NewSpotWatch(base, log.Printf)
	return func(ctx context.Context) (supervisor.Interruption, error) {
		n, err := watch.Next(ctx)
		return supervisor.Interruption{Action: n.Action, Time: n.Time}, err
	}
}
