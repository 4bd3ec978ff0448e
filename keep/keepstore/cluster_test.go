package keepstore

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"
)

func TestConfigFromCluster(t *testing.T) {
	cfg, err := ConfigFromCluster(json.RawMessage(`{
		"SystemRootToken":"root","ManagementToken":"manage","Unknown":{"is":"fine"},"RemoteClusters":{"zbbbb":{"Host":"b.example.com","Proxy":true}},
		"API":{"MaxKeepBlobBuffers":3,"RequestTimeout":"1m0s"},
		"Collections":{"BlobSigningKey":"key","BlobSigningTTL":"336h0m0s","BlobTrash":false,"BlobTrashConcurrency":0,"BlobTrashLifetime":1209600000000000},
		"StorageClasses":{"hot":{"Priority":5},"default":{"Default":true}},
		"Volumes":{
			"zzzzz-nyw5e-1":{"Driver":"Directory","DriverParameters":{"Root":"/a","Serialize":true},"Replication":2,"StorageClasses":{"hot":true,"cold":false}},
			"zzzzz-nyw5e-2":{"Driver":"Directory","DriverParameters":{"Root":"/b"},"AccessViaHosts":{"http://me:1/":{"ReadOnly":true}},"AllowTrashWhenReadOnly":true},
			"zzzzz-nyw5e-3":{"Driver":"S3","AccessViaHosts":{"http://other:1/":{}}},
			"zzzzz-nyw5e-4":{"Driver":"S3","DriverParameters":{"Bucket":"b","Region":"eu-west-1","PrefixLength":3,"ReadTimeout":"1m","RaceWindow":"0s","V2Signature":true,"LocationConstraint":false}}
		}}`), "http://me:1")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		SystemRootToken: "root", ManagementToken: "manage", BlobSigning: true, BlobSigningKey: "key",
		BlobSigningTTL: 336 * time.Hour, BlobTrashLifetime: 336 * time.Hour, BlobReplicateConcurrency: 4, BlobDeleteConcurrency: 4,
		RemoteClusters:     map[string]RemoteCluster{"zbbbb": {Host: "b.example.com"}},
		MaxKeepBlobBuffers: 3, RequestTimeout: time.Minute, StorageClassPriority: map[string]int{"hot": 5, "default": 0},
		Volumes: []VolumeConfig{
			{UUID: "zzzzz-nyw5e-1", Root: "/a", Serialize: true, Replication: 2, StorageClasses: []string{"hot"}},
			{UUID: "zzzzz-nyw5e-2", Root: "/b", ReadOnly: true},
			{UUID: "zzzzz-nyw5e-4", S3: &S3Config{Bucket: "b", Region: "eu-west-1", PrefixLength: 3, V2Signature: true,
				IndexPageSize: 1000, ConnectTimeout: time.Minute, ReadTimeout: time.Minute}},
		},
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("%+v\nwant\n%+v", cfg, want)
	}
}

func TestConfigFromClusterErrors(t *testing.T) {
	var driver *DriverError
	_, err := ConfigFromCluster(json.RawMessage(`{"Volumes":{"v":{"Driver":"Azure"}}}`), "")
	var volume *VolumeError
	if !errors.As(err, &driver) || !errors.As(err, &volume) || err.Error() != "volume v: driver Azure is not supported by this keepstore" {
		t.Error(err)
	}
	for _, bad := range []string{``, `[]`, `{"Collections":{"BlobSigningTTL":"long"}}`, `{"Volumes":{"v":{"Driver":"Directory","DriverParameters":"x"}}}`} {
		if _, err := ConfigFromCluster(json.RawMessage(bad), ""); err == nil || errors.As(err, &driver) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
