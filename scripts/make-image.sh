#!/bin/sh
# make-image.sh ROOTFS OUT.tar NAME:TAG [KEY=VALUE...]: packs a root file system
# as a one-layer image in the format of "docker save" (Docker Image
# Specification v1.2). Each KEY=VALUE becomes an environment variable of the image.
set -eu
rootfs=$1 out=$2 tag=$3
shift 3

work=$(mktemp -d "$(dirname "$out")/.image.XXXXXX")
trap 'rm -rf "$work"' EXIT
tar -C "$rootfs" --numeric-owner --xattrs --sort=name -cf "$work/layer.tar" .
diff_id=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
mkdir "$work/$diff_id"
mv "$work/layer.tar" "$work/$diff_id/layer.tar"

env='"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"'
for kv in "$@"; do env="$env,\"$kv\""; done
printf '{"architecture":"amd64","os":"linux","created":"2026-01-01T00:00:00Z","config":{"Env":[%s],"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"2026-01-01T00:00:00Z","created_by":"make-image.sh"}]}' \
	"$env" "$diff_id" >"$work/config.json"
id=$(sha256sum "$work/config.json" | cut -d' ' -f1)
mv "$work/config.json" "$work/$id.json"
printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["%s/layer.tar"]}]\n' "$id" "$tag" "$diff_id" >"$work/manifest.json"
tar -C "$work" -cf "$out.tmp" "$id.json" "$diff_id" manifest.json
mv "$out.tmp" "$out"
