#!/bin/bash
# Shows Tandem at work: two nodes on this machine, a directory of real files protected on one, its copy
# kept a moment behind on the other, and a failover. Everything lives in a temporary directory and is
# taken away at the end, unless KEEP=1 asks to leave it running.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }
fail() { echo "demo: $*" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "run this as root: it mounts filesystems"
[ -e /dev/fuse ] || fail "there is no /dev/fuse: the kernel must offer FUSE here"

work=$(mktemp -d "${TMPDIR:-/var/tmp}/tandem-demo-XXXXXX")
pids=()
disk=

ended() { # PID: waits for a node that was told to end; one that does not has to say what it waits for
    for _ in $(seq 300); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    echo "demo: node $1 does not end" >&2
    kill -QUIT "$1"
    sleep 1
    tail -n 200 "$work"/*.log >&2
    return 1
}

# finish ends what was started, by its id, in the reverse order. It runs however the demo ends.
finish() {
    code=$?
    trap - EXIT
    if [ $code -ne 0 ]; then
        for log in "$work"/*.log; do
            echo "--- the end of $log"
            tail -n 15 "$log"
        done >&2
    fi
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do ended "$pid" || code=1; done
    for mount in $(awk -v below="$work/" 'index($2, below) == 1 { print $2 }' /proc/mounts | tac); do
        umount "$mount" || umount -l "$mount"
    done
    rm -rf --one-file-system "$work"
    exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

# Tandem protects directories on ext4, XFS and btrfs. Elsewhere the demo brings an ext4 of its own.
case $(stat -f -c %T "$work") in
    ext2/ext3 | xfs | btrfs) disk=$work ;;
    *)
        disk=$work/disk
        mkdir "$disk"
        truncate -s 4G "$work/disk.img"
        mkfs.ext4 -q -F "$work/disk.img"
        mount -o loop "$work/disk.img" "$disk"
        ;;
esac

port() { # a free one on the loopback interface
    local p
    while p=$((20000 + RANDOM % 20000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null || { echo "$p"; return; }
    done
}

start() { # NAME PORT
    setsid bin/tandemfs serve --state "$work/$1.state" --socket "$work/$1.sock" --name "$1" --listen "127.0.0.1:$2" \
        >"$work/$1.log" 2>&1 </dev/null &
    pids+=($!)
    for _ in $(seq 100); do
        "$1" node show >/dev/null 2>&1 && return
        kill -0 "${pids[-1]}" 2>/dev/null || fail "node $1 ended at its start"
        sleep 0.1
    done
    fail "node $1 does not answer"
}
alpha() { TANDEMFS_SOCKET=$work/alpha.sock bin/tandemfs "$@"; }
beta() { TANDEMFS_SOCKET=$work/beta.sock bin/tandemfs "$@"; }

field() { # NAME: the value of a JSON field, wherever it is nested first
    grep -o "\"$1\": *[^,}]*" | head -n 1 | sed 's/^[^:]*: *//; s/"//g'
}
caught_up() {
    local status
    status=$(alpha relationship status "$id" --json)
    [ "$(field job <<<"$status")" = idle ] && [ "$(field epoch <<<"$status")" != 0 ] \
        && [ "$(field behind_bytes <<<"$status")" = 0 ] && [ "$(field behind_seconds <<<"$status")" = 0 ]
}
quiet() {
    for _ in $(seq 3000); do
        caught_up && return
        sleep 0.1
    done
    fail "the copy has not caught up"
}
milliseconds() { echo $(($(date +%s%N) / 1000000)); }
until_copied() { # WHAT COMMAND...: how long until the command succeeds
    local what=$1 start
    shift
    start=$(milliseconds)
    until "$@" 2>/dev/null; do
        [ $(($(milliseconds) - start)) -lt 30000 ] || fail "$what: not on the copy after 30 s"
        sleep 0.005
    done
    echo "$what: on the copy after $(($(milliseconds) - start)) ms"
}

say "Build"
show go build -trimpath -o bin/tandemfs ./cmd/tandemfs
go build -o "$work/compare" ./integration/demo/compare

say "Two nodes on this machine"
target_port=$(port)
start alpha "$(port)"
start beta "$target_port"
alpha node show
beta node show

say "A directory of real files: the Go distribution's own source tree"
live=$disk/live
copy=$disk/copy
mkdir "$live" "$copy"
cp -a "$(go env GOROOT)/src" "$live/"
echo "$(find "$live" -type f | wc -l) files, $(du -sh "$live" | cut -f1) in $live"

say "Protect it, in place: the mount covers the directory itself"
show alpha volume create source-tree "$live"
show alpha volume list

say "Replicate it to the other node, which is asked first"
show alpha relationship create --source source-tree --target "127.0.0.1:$target_port" --target-volume source-copy
id=$(alpha relationship list --json | field id)
for _ in $(seq 100); do
    beta relationship status "$id" >/dev/null 2>&1 && break
    sleep 0.1
done
show beta relationship authorize "$id" --create "$copy" --yes

say "The first transfer"
start_ms=$(milliseconds)
TANDEMFS_SOCKET=$work/alpha.sock bin/tandemfs relationship status "$id" --watch &
watch=$!
quiet
sleep 0.2 # so that it shows the end, too
kill "$watch" 2>/dev/null || true
wait "$watch" 2>/dev/null || true
echo
echo "done after $(($(milliseconds) - start_ms)) ms"
show "$work/compare" "$live" "$copy"

say "Change files and watch the copy follow"
echo "// a line more" >>"$live/src/fmt/print.go"
until_copied "a line appended to a file" cmp -s "$live/src/fmt/print.go" "$copy/src/fmt/print.go"
mv "$live/src/net" "$live/network"
until_copied "a directory of $(find "$live/network" -type f | wc -l) files renamed" test -e "$copy/network/http/server.go"
rm -r "$live/src/cmd"
until_copied "a large directory removed" test ! -e "$copy/src/cmd"
truncate -s 10G "$live/sparse"
printf 'at the end' | dd of="$live/sparse" bs=1 seek=$((10 * 1024 * 1024 * 1024 - 10)) conv=notrunc status=none
until_copied "a sparse file of 10 GiB" cmp -s -i $((10 * 1024 * 1024 * 1024 - 10)) "$live/sparse" "$copy/sparse"
quiet
show "$work/compare" "$live" "$copy"
show beta relationship status "$id"

say "The copy refuses writes"
if touch "$copy/not-here"; then
    fail "the copy took a write"
fi

say "Failover: the copy takes over"
show beta relationship delete "$id" --yes
echo "life goes on" >"$copy/after-failover"
show cat "$copy/after-failover"
[ ! -e "$live/after-failover" ] || fail "the write went to the wrong side"

if [ -n "${KEEP:-}" ]; then
    trap - EXIT
    say "Left running, because KEEP is set"
    cat <<END
Look at it:
  cd $PWD
  TANDEMFS_SOCKET=$work/alpha.sock bin/tandemfs volume list
  TANDEMFS_SOCKET=$work/beta.sock bin/tandemfs volume list
  ls $live $copy
End it:
  kill ${pids[*]}
$([ "$disk" = "$work" ] || echo "  umount $disk")
  rm -rf --one-file-system $work
END
    exit 0
fi
say "That was all: the demo ends and takes everything away"
