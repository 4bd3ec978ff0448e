package oci_test

const supervisorEnv = "OCI_TEST_SUPERVISOR"

func superviseForTest() int { return 0 }
