#!/bin/bash
# Installs the Debian packages that are named and missing. Without the right to do so it says what is
# missing and fails: nothing that needs them would work.
set -eu

missing=()
for package in "$@"; do
    case $package in
        e2fsprogs) program=mkfs.ext4 ;;
        xfsprogs) program=mkfs.xfs ;;
        btrfs-progs) program=mkfs.btrfs ;;
        acl) program=getfacl ;;
        attr) program=getfattr ;;
        iproute2) program=ip ;;
        *) program=$package ;;
    esac
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

say() { echo "install.sh: $*" >&2; }
if [ "$(id -u)" -ne 0 ]; then
    say "these packages are missing: ${missing[*]}. Install them, or run this as root."
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    say "these packages (Debian's names) are missing, and there is no apt-get to install them with: ${missing[*]}"
    exit 1
fi
say "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
