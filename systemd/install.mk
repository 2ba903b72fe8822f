# SPDX-License-Identifier: Apache-2.0
# install, uninstall: included by the Makefile at the root, which builds what these need.
#
#   make install [DESTDIR=] [PREFIX=/usr/local] [SYSCONFDIR=/etc] [LIBDIR=PREFIX/lib]
#
# Packages say PREFIX=/usr. A config that is there already is left alone, and so is everything
# under /var/lib/gpulet; uninstall leaves both.

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
LIBDIR ?= $(PREFIX)/lib
BUILD ?= target/release
CLIENT_LIB ?= target/client-lib
INSTALL ?= install
STRIP ?= strip

BINDIR = $(PREFIX)/bin
# What only the daemon opens; it looks here from BINDIR, whatever LIBDIR is.
PRIVATEDIR = $(PREFIX)/lib/gpulet
UNITDIR = $(PREFIX)/lib/systemd/system
SYSUSERSDIR = $(PREFIX)/lib/sysusers.d
TMPFILESDIR = $(PREFIX)/lib/tmpfiles.d
DATADIR = $(PREFIX)/share
COMPLETIONS_BASH = $(DATADIR)/bash-completion/completions
COMPLETIONS_ZSH = $(DATADIR)/zsh/site-functions
COMPLETIONS_FISH = $(DATADIR)/fish/vendor_completions.d
CONFIG = $(SYSCONFDIR)/gpulet/gpuletd.toml

INSTALL_PROGRAMS = $(addprefix $(BUILD)/,gpuletd gpuletctl gpulet-executor)
INSTALL_MODELS = digits echo null
INSTALL_CLIENT = $(CLIENT_LIB)/libgpulet.so.0 $(CLIENT_LIB)/libgpulet.a
INSTALL_SHIMS = $(BUILD)/libgpulet_torch.so $(BUILD)/libgpulet_torch_cuda.so

# The shims exist only where libtorch was found, the second where it has CUDA: without any the daemon
# serves built-in models.
installed_shims = $(wildcard $(INSTALL_SHIMS))

.PHONY: install uninstall

install: $(INSTALL_PROGRAMS) $(INSTALL_CLIENT)
	$(INSTALL) -d $(addprefix $(DESTDIR),$(BINDIR) $(PRIVATEDIR) $(UNITDIR) $(SYSUSERSDIR) \
		$(TMPFILESDIR) $(SYSCONFDIR)/gpulet)
	$(INSTALL) -m 755 $(BUILD)/gpuletd $(BUILD)/gpuletctl $(DESTDIR)$(BINDIR)/
	$(INSTALL) -m 755 $(BUILD)/gpulet-executor $(DESTDIR)$(PRIVATEDIR)/
	$(STRIP) --strip-unneeded $(addprefix $(DESTDIR),$(BINDIR)/gpuletd $(BINDIR)/gpuletctl \
		$(PRIVATEDIR)/gpulet-executor)
ifneq ($(installed_shims),)
	$(INSTALL) -m 644 $(installed_shims) $(DESTDIR)$(PRIVATEDIR)/
endif
	DESTDIR=$(DESTDIR) ffi/client/install-lib.sh $(CLIENT_LIB) $(PREFIX) $(LIBDIR)
	sed -e 's,@bindir@,$(BINDIR),g' -e 's,@sysconfdir@,$(SYSCONFDIR),g' \
		systemd/gpuletd.service.in >$(DESTDIR)$(UNITDIR)/gpuletd.service
	chmod 644 $(DESTDIR)$(UNITDIR)/gpuletd.service
	$(INSTALL) -m 644 systemd/gpuletd.socket systemd/gpulet-mps.service $(DESTDIR)$(UNITDIR)/
	$(INSTALL) -m 644 systemd/sysusers.d/gpulet.conf $(DESTDIR)$(SYSUSERSDIR)/
	$(INSTALL) -m 644 systemd/tmpfiles.d/gpulet.conf $(DESTDIR)$(TMPFILESDIR)/
	test -e $(DESTDIR)$(CONFIG) || \
		$(INSTALL) -m 644 resource/configs/gpuletd.toml $(DESTDIR)$(CONFIG)
	for model in $(INSTALL_MODELS); do \
		$(INSTALL) -d $(DESTDIR)$(DATADIR)/gpulet/models/$$model && \
		$(INSTALL) -m 644 $$(find resource/models/$$model -name 'model.*') \
			$(DESTDIR)$(DATADIR)/gpulet/models/$$model/ || exit 1; \
	done
	$(BUILD)/gpuletctl man $(BUILD)/man
	for page in $(BUILD)/man/*.[1-8]; do \
		$(INSTALL) -D -m 644 -t $(DESTDIR)$(DATADIR)/man/man$${page##*.} $$page || exit 1; \
	done
	$(INSTALL) -d $(addprefix $(DESTDIR),$(COMPLETIONS_BASH) $(COMPLETIONS_ZSH) \
		$(COMPLETIONS_FISH))
	$(BUILD)/gpuletctl completions bash >$(DESTDIR)$(COMPLETIONS_BASH)/gpuletctl
	$(BUILD)/gpuletctl completions zsh >$(DESTDIR)$(COMPLETIONS_ZSH)/_gpuletctl
	$(BUILD)/gpuletctl completions fish >$(DESTDIR)$(COMPLETIONS_FISH)/gpuletctl.fish
ifeq ($(DESTDIR),)
	ldconfig
	@echo 'Now: systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload;' \
		'put models into /var/lib/gpulet/models ($(DATADIR)/gpulet/models has a few);' \
		'systemctl enable --now gpuletd.socket gpuletd.service'
endif

uninstall:
	rm -f $(addprefix $(DESTDIR),$(BINDIR)/gpuletd $(BINDIR)/gpuletctl \
		$(UNITDIR)/gpuletd.service $(UNITDIR)/gpuletd.socket $(UNITDIR)/gpulet-mps.service \
		$(SYSUSERSDIR)/gpulet.conf $(TMPFILESDIR)/gpulet.conf \
		$(PREFIX)/include/gpulet.h $(PREFIX)/include/gpulet.hpp \
		$(LIBDIR)/libgpulet.so $(LIBDIR)/libgpulet.so.0 $(LIBDIR)/libgpulet.a \
		$(LIBDIR)/pkgconfig/gpulet.pc $(COMPLETIONS_BASH)/gpuletctl \
		$(COMPLETIONS_ZSH)/_gpuletctl $(COMPLETIONS_FISH)/gpuletctl.fish \
		$(DATADIR)/man/man*/gpulet*)
	rm -rf $(addprefix $(DESTDIR),$(PRIVATEDIR) $(PREFIX)/include/gpulet $(LIBDIR)/cmake/gpulet \
		$(DATADIR)/gpulet)
