#!/usr/bin/env bash
# Prints the base image with the digest that its tag has now, so that all stages, architectures and targets of a build use
# the same one, and its provenance names it.
set -euo pipefail
image=${1:-docker.io/library/python:3.11-slim-bookworm}
digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image")
[[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "no digest for $image: $digest" >&2; exit 1; }
echo "$image@$digest"
