#!/usr/bin/env bash
# Install what the tests need beside Python's packages, on Debian and Ubuntu.
set -euo pipefail
if ! command -v ffmpeg >/dev/null; then
  as_root=$([ "$(id -u)" = 0 ] || echo sudo)
  $as_root apt-get update -qq
  $as_root apt-get install -y -qq --no-install-recommends ffmpeg
fi
