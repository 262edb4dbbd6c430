# make            the module build/icn-p11.so and the command build/icn-p11
# make install    into $(DESTDIR)$(PREFIX)
# make test lint clients demo interop clean
# make bench      measure, into build/bench.json (docs/performance.md); BENCH_QUICK=1: in less than a minute
# make bench-report   of that file, docs/performance.md's tables and docs/performance.svg
# make fuzz soak memcheck reproducible arm64      docs/testing.md
#
# Building needs Go, gcc and make.

PREFIX  ?= /usr/local
bindir  ?= $(PREFIX)/bin
libdir  ?= $(PREFIX)/lib
datadir ?= $(PREFIX)/share
mandir  ?= $(datadir)/man
docdir  ?= $(datadir)/doc/icn-p11
unitdir ?= $(PREFIX)/lib/systemd/user
# A distribution's p11-kit reads /usr/share and /etc, whatever the prefix here.
p11kitdir ?= $(if $(filter-out /usr,$(PREFIX)),/etc/pkcs11/modules,$(datadir)/p11-kit/modules)

GO ?= go
INSTALL ?= install
OBJDUMP ?= objdump
ifeq ($(origin CC),default)
CC := gcc
endif
# cgo/ld-defer.sh links with the compiler that cgo compiles with.
export CC
export CGO_ENABLED := 1

VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),dev)

# runtime/secret wipes registers, stacks and freed heap after the use of a key.
# It is an experiment of the toolchain; without it internal/secmem does less.
ifneq ($(shell GOEXPERIMENT=runtimesecret $(GO) list runtime/secret 2>/dev/null),)
comma := ,
export GOEXPERIMENT := $(if $(GOEXPERIMENT),$(GOEXPERIMENT)$(comma))runtimesecret
endif

module  := build/icn-p11.so
command := build/icn-p11
SOURCES := go.mod go.sum Makefile $(shell find . \( -name build -o -name '.?*' \) -prune -o \
	\( -name '*.go' -o -name '*.c' -o -name '*.h' -o -name '*.map' -o -name '*.sh' \) \
	! -name '*_test.go' ! -path './test/*' ! -path './bench/*' -type f -print)

LD_FLAGS := '-Wl,--version-script=$(CURDIR)/cgo/exports.map' -Wl,-soname,icn-p11.so \
	-Wl,-z,now -Wl,-z,relro -Wl,--build-id=sha1

.PHONY: all install clean test lint clients demo interop bench bench-report fuzz soak memcheck reproducible arm64
.DELETE_ON_ERROR:

all: $(module) $(command)

# The last two steps check what a changed toolchain could silently break: that
# loading the module does not start Go, and that a copy can be told from
# another build's.
$(module): $(SOURCES)
	@mkdir -p build
	rm -f $@
	$(GO) build -trimpath -buildmode=c-shared -o $@ \
		-ldflags "-s -w -buildid= -X main.version=$(VERSION) \"-extld='$(CURDIR)/cgo/ld-defer.sh'\" -extldflags \"$(LD_FLAGS)\"" ./cgo
	@rm -f build/icn-p11.h
	@$(OBJDUMP) -h $@ | grep -q ' go_init_array ' || { echo "$@: Go's initialiser was not deferred (cgo/ld-defer.sh)" >&2; exit 1; }
	@$(OBJDUMP) -h $@ | grep -q ' .note.gnu.build-id ' || { echo "$@: has no build-id" >&2; exit 1; }

# The module with its C and its Go instrumented for the address sanitizer, and
# its C for that of undefined behaviour, for test/fuzz: a host that loads it must
# be linked with both.
build/asan/icn-p11.so: $(SOURCES)
	@mkdir -p $(@D)
	CGO_CFLAGS='-O1 -g -fsanitize=undefined -fno-sanitize-recover=all' CGO_LDFLAGS=-fsanitize=undefined \
		$(GO) build -asan -trimpath -buildmode=c-shared -o $@ \
		-ldflags "-X main.version=$(VERSION) \"-extld='$(CURDIR)/cgo/ld-defer.sh'\" -extldflags \"$(LD_FLAGS)\"" ./cgo
	@rm -f build/asan/icn-p11.h

# The module for test/fuzz/memcheck.sh, with names but no debug information, and
# without the signals by which Go preempts itself on stacks that memcheck does
# not expect them on.
build/valgrind/icn-p11.so: $(SOURCES)
	@mkdir -p $(@D)
	$(GO) build -tags valgrind -overlay '$(OVERLAY)' -trimpath -buildmode=c-shared -o $@ \
		-ldflags "-w -X runtime.godebugDefault=asyncpreemptoff=1 -X main.version=$(VERSION) \"-extld='$(CURDIR)/cgo/ld-defer.sh'\" -extldflags \"$(LD_FLAGS)\"" ./cgo
	@rm -f build/valgrind/icn-p11.h

$(command): $(SOURCES)
	@mkdir -p build
	$(GO) build -trimpath -o $@ -ldflags "-s -w -buildid= -X main.version=$(VERSION)" ./cmd/icn-p11

install: all
	$(INSTALL) -d '$(DESTDIR)$(libdir)/pkcs11' '$(DESTDIR)$(bindir)' '$(DESTDIR)$(p11kitdir)' '$(DESTDIR)$(docdir)'
	$(INSTALL) -m 0644 $(module) '$(DESTDIR)$(libdir)/pkcs11/icn-p11.so.new'
	mv -f '$(DESTDIR)$(libdir)/pkcs11/icn-p11.so.new' '$(DESTDIR)$(libdir)/pkcs11/icn-p11.so'
	$(INSTALL) -m 0755 $(command) '$(DESTDIR)$(bindir)/icn-p11'
	printf '# Ed25519 keys sealed to a TPM 2.0; see p11-kit.conf(5)\nmodule: %s\n' '$(abspath $(libdir))/pkcs11/icn-p11.so' \
		> '$(DESTDIR)$(p11kitdir)/icn-p11.module'
	$(INSTALL) -m 0644 icn-p11.conf.example '$(DESTDIR)$(docdir)/icn-p11.conf.example'
	@set -e; for unit in dist/systemd/*; do \
		case $$unit in *.conf) dir='$(DESTDIR)$(docdir)' ;; *) dir='$(DESTDIR)$(unitdir)' ;; esac; \
		echo "sed s:/usr/local/bin:$(bindir): $$unit > $$dir/$${unit##*/}"; \
		$(INSTALL) -d "$$dir"; \
		sed 's:/usr/local/bin:$(bindir):' "$$unit" > "$$dir/$${unit##*/}"; chmod 0644 "$$dir/$${unit##*/}"; \
	done
	@set -e; for page in docs/man/*.[157]; do \
		[ -e "$$page" ] || continue; \
		dir='$(DESTDIR)$(mandir)'/man$${page##*.}; \
		echo "$(INSTALL) -m 0644 $$page $$dir"; \
		$(INSTALL) -d "$$dir"; $(INSTALL) -m 0644 "$$page" "$$dir/"; \
	done
	@set -e; if $(command) completion bash >/dev/null 2>&1; then \
		$(INSTALL) -d '$(DESTDIR)$(datadir)/bash-completion/completions' '$(DESTDIR)$(datadir)/zsh/site-functions' '$(DESTDIR)$(datadir)/fish/vendor_completions.d'; \
		$(command) completion bash > '$(DESTDIR)$(datadir)/bash-completion/completions/icn-p11'; \
		$(command) completion zsh > '$(DESTDIR)$(datadir)/zsh/site-functions/_icn-p11'; \
		$(command) completion fish > '$(DESTDIR)$(datadir)/fish/vendor_completions.d/icn-p11.fish'; \
	fi

test:
	test/run.sh

lint:
	test/lint.sh

clients:
	test/deps.sh clients
	$(MAKE) --no-print-directory all
	test/pages.sh

demo:
	test/demo.sh

interop:
	test/interop/run.sh

bench: all
	test/deps.sh bench
	$(GO) run ./bench run $(if $(BENCH_QUICK),-quick)

bench-report:
	$(GO) run ./bench report build/bench.json docs

# Seconds that make fuzz and make soak take, beside building.
FUZZTIME ?= 600
SOAKTIME ?= 600

fuzz: all
	test/deps.sh fuzz
	test/fuzz/run.sh $$(($(FUZZTIME) / 6))
	FUZZ_SANITIZED=1 test/fuzz/run.sh $$(($(FUZZTIME) / 6))
	test/fuzz/go.sh $$(($(FUZZTIME) * 2 / 3))

soak: all
	test/deps.sh fuzz
	test/soak/run.sh $(SOAKTIME)

memcheck:
	test/deps.sh fuzz
	test/fuzz/memcheck.sh

reproducible:
	test/build/reproducible.sh

arm64:
	test/deps.sh arm64
	test/build/arm64.sh

clean:
	rm -rf build
