package localcluster

const childEnv = "LOCALCLUSTER_TEST_CHILD"

func childMain(dir string) int { return 0 }
