// SPDX-License-Identifier: Apache-2.0
#include "guest/examples/kvm/machine.hpp"

#include "guest/examples/kvm/image.hpp"
#include "guest/examples/kvm/kvm_abi.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace kvm_guest {
namespace {

constexpr int kick_signal = SIGUSR1;
// How long a halted guest rests: there is no timer that could wake it.
constexpr std::chrono::milliseconds tick{5};
constexpr std::chrono::milliseconds longest_rest{1000};

void install_kick() {
  struct sigaction action {};
  action.sa_handler = [](int) {};  // only to interrupt KVM_RUN
  ::sigaction(kick_signal, &action, nullptr);
}

// Nothing of this machine can be trusted any more; the daemon sees that it is gone.
[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "kvm-guest: %s\n", why.c_str());
  std::_Exit(3);
}

}  // namespace

Machine::Machine(std::byte* memory, std::uint64_t size, int serial_file) noexcept
    : memory_(memory), size_(size), serial_(serial_file), log_(size / 4096 / 64) {
  cpu_.vcpu = -1;
}

Machine::~Machine() {
  if (thread_.joinable()) {
    rest();
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  if (run_ != nullptr) ::munmap(run_, run_size_);
  for (const int fd : {cpu_.vcpu, vm_, kvm_})
    if (fd >= 0) ::close(fd);
}

bool Machine::failed(const char* what) {
  error_ = std::string(what) + ": " + std::strerror(errno);
  return false;
}

bool Machine::open() {
  kvm_ = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm_ < 0) return failed("/dev/kvm");
  if (::ioctl(kvm_, KVM_GET_API_VERSION, 0) != KVM_API_VERSION ||
      ::ioctl(kvm_, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0) {
    error_ = "/dev/kvm: a KVM of another kind, or older than Linux 4.13";
    return false;
  }
  vm_ = ::ioctl(kvm_, KVM_CREATE_VM, 0);
  if (vm_ < 0) return failed("KVM_CREATE_VM");
  // Three pages for Intel's processors that have no real mode in guests; behind all memory.
  if (::ioctl(vm_, KVM_SET_TSS_ADDR, 0xfffbd000) < 0) return failed("KVM_SET_TSS_ADDR");
  if (!set_memory_slot()) return false;
  cpu_.vcpu = ::ioctl(vm_, KVM_CREATE_VCPU, 0);
  if (cpu_.vcpu < 0) return failed("KVM_CREATE_VCPU");
  if (!copy_host_cpuid()) return false;
  run_size_ = static_cast<std::size_t>(::ioctl(kvm_, KVM_GET_VCPU_MMAP_SIZE, 0));
  void* mapped = ::mmap(nullptr, run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, cpu_.vcpu, 0);
  if (mapped == MAP_FAILED) return failed("mapping of kvm_run");
  run_ = static_cast<kvm_run*>(mapped);
  install_kick();
  thread_ = std::thread([this] { work(); });
  return true;
}

bool Machine::set_memory_slot() {
  kvm_userspace_memory_region slot{};
  slot.flags = logged_ ? KVM_MEM_LOG_DIRTY_PAGES : 0U;
  slot.memory_size = size_;
  slot.userspace_addr = reinterpret_cast<std::uintptr_t>(memory_);
  return ::ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot) == 0 || failed("KVM_SET_USER_MEMORY_REGION");
}

// The guest asks for no features, but KVM takes only registers (XCR0, some MSRs) of a processor that has them. A
// monitor that moves guests between unlike hosts would give a smaller common set here.
bool Machine::copy_host_cpuid() {
  const auto list = std::make_unique<CpuidList>();
  if (::ioctl(kvm_, get_supported_cpuid, list.get()) < 0) return failed("KVM_GET_SUPPORTED_CPUID");
  return ::ioctl(cpu_.vcpu, set_cpuid, list.get()) == 0 || failed("KVM_SET_CPUID2");
}

bool Machine::boot() {
  write_image(memory_, size_);
  if (reset_registers(cpu_, size_)) return true;
  error_ = cpu_.error;
  return false;
}

// --- run and rest ---

void Machine::set_immediate_exit(bool on) noexcept {
  __atomic_store_n(&run_->immediate_exit, static_cast<std::uint8_t>(on), __ATOMIC_RELEASE);
}

void Machine::run() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return resting_; });
    if (keep_running_) return;
    keep_running_ = true;
    resting_ = false;
    set_immediate_exit(false);
  }
  serial_.note("started");
  changed_.notify_all();
}

void Machine::rest() {
  std::unique_lock lock(mutex_);
  if (keep_running_) {
    keep_running_ = false;
    set_immediate_exit(true);
    ::pthread_kill(thread_.native_handle(), kick_signal);
    changed_.notify_all();
    changed_.wait(lock, [this] { return resting_; });
    serial_.note("stopped");
  }
}

void Machine::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    resting_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return ending_ || !resting_; });
    if (ending_) return;
    lock.unlock();
    woke_ = Clock::now();
    while (keep_running_) step();
    finish_instruction();
    lock.lock();
  }
}

void Machine::step() {
  if (::ioctl(cpu_.vcpu, KVM_RUN, 0) < 0) {
    if (errno == EINTR || errno == EAGAIN) return;
    give_up(std::string("KVM_RUN: ") + std::strerror(errno));
  }
  if (run_->exit_reason == KVM_EXIT_IO) return port_access();
  if (run_->exit_reason == KVM_EXIT_HLT) return halt();
  const unsigned detail = run_->exit_reason == KVM_EXIT_INTERNAL_ERROR ? run_->internal.suberror : 0;
  give_up("the processor cannot go on: exit " + std::to_string(run_->exit_reason) + ", " + std::to_string(detail));
}

void Machine::finish_instruction() {
  set_immediate_exit(true);
  if (::ioctl(cpu_.vcpu, KVM_RUN, 0) < 0 && errno == EINTR) return;
  give_up("the last instruction was not finished");
}

void Machine::port_access() {
  auto* bytes = reinterpret_cast<std::uint8_t*>(run_) + run_->io.data_offset;
  const auto reg = static_cast<std::uint16_t>(run_->io.port - serial_base);
  const std::size_t length = std::size_t{run_->io.count} * run_->io.size;
  if (reg >= serial_ports || run_->io.size != 1) {
    if (run_->io.direction == KVM_EXIT_IO_IN) std::fill_n(bytes, length, 0xff);  // nobody there
    return;
  }
  for (std::size_t i = 0; i < length; ++i) {
    if (run_->io.direction == KVM_EXIT_IO_OUT)
      serial_.write(reg, bytes[i]);
    else
      bytes[i] = serial_.read(reg);
  }
}

// A throttled guest rests for its share of the time since it was woken last, the usual pause included.
void Machine::halt() {
  using std::chrono::microseconds;
  const unsigned percent = std::min(throttle_.load(), 99U);
  const auto awake = std::chrono::duration_cast<microseconds>(Clock::now() - woke_) + tick;
  const auto pause = std::min<microseconds>(tick + awake * percent / (100 - percent), longest_rest);
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, pause, [this] { return !keep_running_; });
  }
  woke_ = Clock::now();
}

// --- the dirty log ---

bool Machine::log_writes(bool on) {
  logged_ = on;
  return set_memory_slot();
}

bool Machine::fetch_log(unsigned char* bitmap) {
  if (!logged_) return true;
  kvm_dirty_log log{};
  log.dirty_bitmap = log_.data();
  if (::ioctl(vm_, KVM_GET_DIRTY_LOG, &log) < 0) return failed("KVM_GET_DIRTY_LOG");
  // KVM forgot them with that call; the daemon takes bits out of the shared bitmap at the same time.
  auto* words = static_cast<std::uint64_t*>(static_cast<void*>(bitmap));
  for (std::size_t i = 0; i < log_.size(); ++i)
    if (log_[i] != 0) __atomic_fetch_or(words + i, log_[i], __ATOMIC_RELEASE);
  return true;
}

}  // namespace kvm_guest
