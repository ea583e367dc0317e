// SPDX-License-Identifier: Apache-2.0
//
// kvm-guest: a VM monitor that is migrated by the daemon it is attached to. README.md says how it works.
#include "guest/examples/kvm/image.hpp"
#include "guest/examples/kvm/machine.hpp"
#include "guest/examples/kvm/standalone.hpp"

#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

namespace kvm_guest {
namespace {

constexpr int exit_skipped = 77;
constexpr const char* block_name = "ram";
constexpr std::uint64_t mib = std::uint64_t{1} << 20;

constexpr const char* usage =
    "usage: kvm-guest --attach SOCKET [--empty] [--memory SIZE] [--serial FILE]\n"
    "       kvm-guest --standalone SECONDS [--memory SIZE] [--serial FILE]\n"
    "\n"
    "  --attach SOCKET        of a migrationd with --machine attached,socket=SOCKET\n"
    "  --empty                wait for a machine that migrates to here, instead of starting one\n"
    "  --memory SIZE          MiB, or with K, M or G; default 4M\n"
    "  --serial FILE          what the guest prints is appended to FILE; default: standard output\n"
    "  --standalone SECONDS   without a daemon: moves the processor from VM to VM, and proves the dirty log\n"
    "  --drop-dirty-log       for tests: tells the daemon of no write, which must break the guest\n"
    "\n"
    "SIGTERM: stops the guest, proves its memory, ends. Exit status 0: all is right, 1: it is not, 3: KVM cannot go\n"
    "on, 77: no KVM here.\n";

struct Options {
  std::string socket;
  bool empty = false;
  std::uint64_t memory = 4 * mib;
  std::string serial;
  unsigned standalone = 0;
  bool drop_dirty_log = false;
};

[[noreturn]] void die(const std::string& why, int status = 1) {
  std::fprintf(stderr, "kvm-guest: %s\n", why.c_str());
  std::_Exit(status);  // with its threads
}

std::uint64_t size_of(const char* text) {
  char* end = nullptr;
  const std::uint64_t number = std::strtoull(text, &end, 10);
  const std::string unit = end;
  const std::uint64_t scale = unit == "K" ? 1024 : unit == "G" ? 1024 * mib : mib;
  const std::uint64_t size = number * scale;
  if (end == text || number > 2 * 1024 * mib || (!unit.empty() && unit != "K" && unit != "M" && unit != "G") ||
      size == 0 || size > 2048 * mib || size % mib != 0)
    die("--memory " + std::string(text) + ": a multiple of 1M up to 2G is wanted", 2);
  return size;
}

Options parse(int argc, char** argv) {
  enum Id { attach = 1, empty, memory, serial, standalone, drop, help };
  const option known[] = {{"attach", required_argument, nullptr, attach},
                          {"empty", no_argument, nullptr, empty},
                          {"memory", required_argument, nullptr, memory},
                          {"serial", required_argument, nullptr, serial},
                          {"standalone", required_argument, nullptr, standalone},
                          {"drop-dirty-log", no_argument, nullptr, drop},
                          {"help", no_argument, nullptr, help},
                          {nullptr, 0, nullptr, 0}};
  Options options;
  for (int id = 0; (id = ::getopt_long(argc, argv, "", known, nullptr)) != -1;) {
    switch (id) {
      case attach:
        options.socket = optarg;
        break;
      case empty:
        options.empty = true;
        break;
      case memory:
        options.memory = size_of(optarg);
        break;
      case serial:
        options.serial = optarg;
        break;
      case standalone:
        options.standalone = static_cast<unsigned>(std::atoi(optarg));
        break;
      case drop:
        options.drop_dirty_log = true;
        break;
      case help:
        std::fputs(usage, stdout);
        std::exit(0);
      default:
        die(usage, 2);
    }
  }
  if (optind != argc || options.socket.empty() == (options.standalone == 0)) die(usage, 2);
  return options;
}

// --- what the daemon asks for, in the library's thread ---

struct Monitor {
  Options options;
  md_guest* guest = nullptr;
  Machine* machine = nullptr;
  unsigned char* bitmap = nullptr;
  std::atomic<bool> has_machine = false;  // its own, or one that arrived
  std::atomic<bool> left = false;
  std::atomic<bool> alone = false;  // the daemon is gone
  int events = -1;                  // an eventfd: something for the main thread
};

Monitor& monitor(void* user) { return *static_cast<Monitor*>(user); }

int stop(void* user) {
  monitor(user).machine->rest();
  return 0;
}

int start(void* user) {
  monitor(user).has_machine = true;
  monitor(user).machine->run();
  return 0;
}

void throttle(void* user, unsigned percent) { monitor(user).machine->throttle(percent); }

int dirty_log(void* user, int on) {
  Monitor& self = monitor(user);
  return self.machine->log_writes(on != 0) ? 0 : md_guest_refuse(self.guest, self.machine->error().c_str());
}

int dirty_sync(void* user) {
  Monitor& self = monitor(user);
  if (self.options.drop_dirty_log) return 0;
  return self.machine->fetch_log(self.bitmap) ? 0 : md_guest_refuse(self.guest, self.machine->error().c_str());
}

void event(void* user, md_event what, const char* why) {
  Monitor& self = monitor(user);
  const char* const names[] = {"", "left", "stays", "arrived", "the daemon is gone"};
  self.machine->serial()->note((std::string(names[what]) + (*why != '\0' ? ": " : "") + why).c_str());
  if (what == MD_LEFT) self.left = true;
  if (what == MD_DAEMON_GONE) self.alone = true;
  if (what == MD_ARRIVED) self.has_machine = true;
  if (what == MD_LEFT || what == MD_DAEMON_GONE) ::eventfd_write(self.events, 1);
}

// --- the main thread ---

// Attaches, or says why not. After a daemon's death this is done again and again until there is a new one.
bool attach(Monitor& self) {
  const unsigned state = !self.has_machine ? MD_EMPTY : self.machine->is_running() ? MD_RUNNING : MD_PAUSED;
  if (md_guest_attach(self.guest, self.options.socket.c_str(), state) == 0) {
    self.machine->serial()->note("attached");
    return true;
  }
  std::fprintf(stderr, "kvm-guest: %s\n", md_guest_error(self.guest));
  return false;
}

// Until somebody wants it to end, or the machine has left.
void wait_for_end(Monitor& self, int signals) {
  for (bool attached = true;;) {
    pollfd waiting[] = {{signals, POLLIN, 0}, {self.events, POLLIN, 0}};
    if (::poll(waiting, 2, attached ? -1 : 1000) < 0 && errno != EINTR) die("poll");
    if (self.left || (waiting[0].revents & POLLIN) != 0) return;
    eventfd_t count = 0;
    if ((waiting[1].revents & POLLIN) != 0) ::eventfd_read(self.events, &count);
    if (self.alone.exchange(false)) attached = false;
    if (!attached) attached = attach(self);
  }
}

// A machine that is still here: its memory, proved while it stands still.
int last_words(Machine& machine) {
  machine.rest();
  if (!read_registers(*machine.cpu())) die(machine.cpu()->error);
  const Proof proof = prove(machine.memory(), machine.memory_size(), machine.cpu()->registers.regs);
  const std::string text =
      proof.wrong.empty() ? "proved " + std::to_string(proof.pages) + " pages in round " + std::to_string(proof.round)
                          : "wrong: " + proof.wrong;
  machine.serial()->note(text.c_str());
  return proof.wrong.empty() ? 0 : 1;
}

int be_migrated(Monitor& self, int signals) {
  if (md_guest_add_device(self.guest, &cpu_device, self.machine->cpu(), nullptr, 0) != 0 ||
      md_guest_add_device(self.guest, &serial_device, self.machine->serial()->state(), nullptr, 0) != 0)
    die(md_guest_error(self.guest));
  self.bitmap = md_guest_bitmap(self.guest, block_name, nullptr);
  if (!attach(self)) return 1;
  wait_for_end(self, signals);
  if (self.left) std::_Exit(0);  // the library's thread may still be talking: there is nothing to tidy up
  if (md_guest_is_attached(self.guest) != 0 && md_guest_detach(self.guest) != 0) die(md_guest_error(self.guest));
  return self.has_machine ? last_words(*self.machine) : 0;
}

int serial_file(const Options& options) {
  if (options.serial.empty()) return STDOUT_FILENO;
  const int file = ::open(options.serial.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) die(options.serial + ": " + std::strerror(errno));
  return file;
}

// Before there are threads: they inherit that these signals come to the main thread's descriptor.
int take_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGTERM);
  ::sigaddset(&set, SIGINT);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  return ::signalfd(-1, &set, SFD_CLOEXEC);
}

int run(int argc, char** argv) {
  Monitor self;
  self.options = parse(argc, argv);
  const int signals = take_signals();
  self.events = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  md_callbacks callbacks{};
  callbacks.size = sizeof(callbacks);
  callbacks.stop = stop;
  callbacks.start = start;
  callbacks.throttle = throttle;
  callbacks.dirty_log = dirty_log;
  callbacks.dirty_sync = dirty_sync;
  callbacks.event = event;
  const std::unique_ptr<md_guest, void (*)(md_guest*)> guest(md_guest_new("kvm-example-1", &callbacks, &self),
                                                             md_guest_free);
  self.guest = guest.get();
  void* memory = md_guest_new_block(self.guest, block_name, self.options.memory, 4096, MD_TRACK_BITMAP);
  if (memory == nullptr) die(md_guest_error(self.guest));

  Machine machine(static_cast<std::byte*>(memory), self.options.memory, serial_file(self.options));
  if (!machine.open()) die(machine.error(), exit_skipped);
  self.machine = &machine;
  machine.cpu()->guest = self.guest;
  if (!self.options.empty) {
    if (!machine.boot()) die(machine.error(), exit_skipped);
    self.has_machine = true;
    machine.run();
  }
  if (self.options.standalone != 0) return prove_standalone(machine, self.options.standalone);
  return be_migrated(self, signals);
}

}  // namespace
}  // namespace kvm_guest

int main(int argc, char** argv) { return kvm_guest::run(argc, argv); }
