#!/usr/bin/env bash
# Other versions of real Puma beside the installed one, without root: Debian packages of a newer suite, from the mirror
# that this machine is configured with, unpacked into a folder and run through their own loader.
#   pumas.sh SUITE FOLDER    prints the path of a `puma` command; exit code 1 with a reason where it cannot be had
# SUITE: trixie (Puma 6.6 with Ruby 3.3) or sid (Puma 8). What is there already is not fetched again.
set -euo pipefail

suite=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)/$suite
puma=$folder/bin/puma

# One at a time: tests run side by side.
exec 9>"$folder.lock"
flock 9

if [ -x "$puma" ] && "$puma" --version >/dev/null 2>&1; then
  echo "$puma"
  exit 0
fi
if [ -e "$folder.gone" ] && [ -z "$(find "$folder.gone" -mmin +60)" ]; then
  cat "$folder.gone" >&2
  exit 1
fi

gone() {
  echo "no Puma of $suite: $1" | tee "$folder.gone" >&2
  exit 1
}

for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null 2>&1 || gone "there is no $tool"
done
# The first source that names a Debian archive, in either spelling of apt's files.
mirror=$({ cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
  sed -nE 's/^(URIs:|deb( \[[^]]*\])?) +([^ ]+\/debian)\/?( .*)?$/\3/p' | head -n 1)
[ -n "$mirror" ] || gone "apt is configured with no Debian mirror"
loader_name=$(basename "$(find -L /lib64 /lib -maxdepth 1 -name 'ld-linux-*.so.*' | head -n 1)")

rm -rf "$folder" "$folder.gone"
mkdir -p "$folder"/{apt/lists/partial,apt/archives/partial,root,bin}
: >"$folder/apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$folder/apt/sources.list"
# An empty list of installed packages: the C library comes along. Nothing of the machine's own state is touched.
apt() {
  apt-get -qq -o Dir::Etc::sourcelist="$folder/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferencesparts=/dev/null -o Dir::Etc::preferences=/dev/null -o Dir::State::lists="$folder/apt/lists" \
    -o Dir::State::status="$folder/apt/status" -o Dir::Cache="$folder/apt" -o Dir::Cache::archives="$folder/apt/archives" \
    -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 -o Acquire::Languages=none -o Acquire::Retries=1 "$@"
}
apt update >"$folder/apt/log" 2>&1 || gone "the mirror does not have it ($(tail -n 1 "$folder/apt/log"))"
apt install -y --no-install-recommends --download-only puma ruby-rack >>"$folder/apt/log" 2>&1 ||
  gone "its packages cannot be fetched ($(tail -n 1 "$folder/apt/log"))"
# Maintainers' tools, documents and perl are not needed to run Ruby.
for package in "$folder"/apt/archives/*.deb; do
  case $(basename "$package") in
  perl* | libperl* | debconf* | dpkg* | tar_* | fonts-* | libjs-*) ;;
  *) dpkg-deb -x "$package" "$folder/root" ;;
  esac
done
rm -rf "$folder/apt/lists" "$folder/apt/archives"

triplet=$(basename "$(dirname "$(find "$folder/root/usr/lib" -name libc.so.6 | head -n 1)")")
version=$(basename "$(find "$folder/root/usr/bin" -name 'ruby[0-9]*' | head -n 1)")
version=${version#ruby}
root=$folder/root
libraries=$root/usr/lib/ruby
cat >"$folder/bin/ruby" <<SCRIPT
#!/bin/sh
export RUBYLIB="$libraries/vendor_ruby/$version.0:$libraries/vendor_ruby:$root/usr/lib/$triplet/ruby/vendor_ruby/$version.0:$root/usr/lib/$triplet/ruby/$version.0:$libraries/$version.0"
export GEM_PATH="$root/usr/share/rubygems-integration/all:$root/usr/share/rubygems-integration/$version.0:$root/usr/lib/$triplet/rubygems-integration/$version.0:$root/var/lib/gems/$version.0"
exec "$root/usr/lib/$triplet/$loader_name" --library-path "$root/usr/lib/$triplet:$root/lib/$triplet" "$root/usr/bin/ruby$version" -r "$folder/bin/again.rb" "\$@"
SCRIPT
# A hot restart starts Ruby anew: by the same way as the first time.
echo "Gem.instance_variable_set(:@ruby, '$folder/bin/ruby') if defined?(Gem)" >"$folder/bin/again.rb"
printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$folder/bin/ruby" "$root/usr/bin/puma" >"$puma"
chmod +x "$folder/bin/ruby" "$puma"
"$puma" --version >>"$folder/apt/log" 2>&1 || gone "it does not run ($(tail -n 3 "$folder/apt/log"))"
echo "$puma"
