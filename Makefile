# lazaret's verbs. Two commands on a fresh Debian 12 machine, as root: make demo, make test.

PREFIX ?= /usr
CARGO ?= cargo
export CARGO_TARGET_DIR ?= $(CURDIR)/target

target  := $(CARGO_TARGET_DIR)
release := $(target)/release
agent   := $(target)/agent/x86_64-unknown-linux-gnu/agent/lazaret-agent
bin     := $(DESTDIR)$(PREFIX)/bin
libexec := $(DESTDIR)$(PREFIX)/libexec/lazaret
share   := $(DESTDIR)$(PREFIX)/share/lazaret

.PHONY: help deps deps-full build kernel agent install demo test test-full bench lint clean
.DEFAULT_GOAL := help

help:
	@echo 'make deps      install, through apt, what building and testing needs'
	@echo 'make deps-full the same for the long tests too'
	@echo 'make build     build the binaries, the guest kernel and the initramfs'
	@echo 'make kernel    build the guest kernel, or take it from the cache'
	@echo 'make install   install what was built (DESTDIR, PREFIX=/usr)'
	@echo 'make demo      deps, build, and run a container in a microVM'
	@echo 'make test      deps, build, and pass the tests'
	@echo 'make test-full the same with the long ones: databases, web servers, package managers'
	@echo 'make bench     measure start time, memory and VM exits'
	@echo 'make lint      check formatting, lints, scripts and dependencies'
	@echo 'make clean     remove build products (not the caches in ~/.cache/lazaret)'

deps:
	@scripts/install-prerequisites

deps-full:
	@scripts/install-prerequisites --full

build: kernel agent
	$(CARGO) build --release --package lazaret-vmm --package lazaret-runtime

# Copied, not linked: a link into the cache leads nowhere in the lab.
kernel:
	@mkdir -p $(target)/guest-kernel
	@vmlinux=$$(guest-kernel/build) \
	    && { cmp -s "$$vmlinux" $(target)/guest-kernel/vmlinux || cp "$$vmlinux" $(target)/guest-kernel/vmlinux; }

# Linked statically, for it is alone in its file system; in a directory of its own, for the flag
# would otherwise make cargo build everything anew each time.
agent:
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --package lazaret-agent --profile agent \
	    --target x86_64-unknown-linux-gnu --target-dir $(target)/agent
	@scripts/initramfs $(agent) $(target)/initramfs

install:
	@test -e $(release)/lazaret -a -e $(target)/initramfs -a -e $(target)/guest-kernel/vmlinux \
	    || { echo 'error: nothing to install; run: make build' >&2; exit 1; }
	install -D -m 755 -t $(bin) $(release)/lazaret $(release)/lazaret-oci $(release)/containerd-shim-lazaret-v2
	install -D -m 755 -t $(libexec) $(release)/lazaret-vmm
	install -D -m 644 -t $(share) $(target)/guest-kernel/vmlinux $(target)/initramfs

demo: deps build
	@scripts/with-kvm demo scripts/demo

# Unit tests run here; the end-to-end tests drive the installed lazaret, on this machine or in the lab.
# The full run has those that take minutes on an emulated processor too.
test: deps
test-full: full := --include-ignored
test-full: deps-full
test test-full: build
	$(CARGO) test --workspace --exclude lazaret-tests
	$(CARGO) test --package lazaret-tests --no-run
	scripts/with-kvm test scripts/test-with-kvm $(full)

# Start-up under a clock that counts instructions. What takes longer goes by the emulated machine's
# own: with the other, emulation now and then interrupts a guest that has interrupts off.
bench: benchmark := $(CARGO) run --quiet --release --package lazaret-tests --bin bench --
bench: deps build
	$(CARGO) build --release --package lazaret-tests --bin bench
	scripts/with-kvm --icount bench $(benchmark) sandbox run
	scripts/with-kvm bench $(benchmark) --keep docker network files

lint:
	$(CARGO) fmt --all --check
	scripts/check-conformance
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck scripts/* guest-kernel/build .ci/run tests/runtime-tools/build \
	    tests/lab/lab tests/lab/image tests/lab/guest/*-init; else echo 'shellcheck is not installed: skipped'; fi
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check; else echo 'cargo-deny is not installed: skipped'; fi

clean:
	rm -rf $(target)
