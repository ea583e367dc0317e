// SPDX-License-Identifier: Apache-2.0
#include "transports/exec_child.hpp"

#include "transports/descriptor_channel.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <vector>

namespace migrationd::transports {

namespace {

using std::chrono::milliseconds;

// A child whose pipes are closed mostly ends at once: it sees the end of its input, or SIGPIPE.
constexpr milliseconds natural_end{300};
constexpr milliseconds after_sigterm{700};

struct Pipe {
  UniqueFd read;
  UniqueFd write;
};

// Both ends are above 2, so that the child's dup2 calls cannot overwrite one another's sources.
Result<Pipe> make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return Error::from_errno("make a pipe for the command");
  Pipe out{UniqueFd(fds[0]), UniqueFd(fds[1])};
  for (UniqueFd* end : {&out.read, &out.write}) {
    if (end->get() > 2) continue;
    MD_TRY(*end, end->duplicate());
  }
  return out;
}

// The parts of posix_spawn that must be destroyed.
struct SpawnPlan {
  posix_spawn_file_actions_t actions{};
  posix_spawnattr_t attributes{};
  SpawnPlan() {
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawnattr_init(&attributes);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  }
};

// The child gets default signal handling (we ignore SIGPIPE, it must not) and no blocked signals.
void plan_child(SpawnPlan& plan, int child_input, int child_output) {
  ::posix_spawn_file_actions_adddup2(&plan.actions, child_input, 0);
  ::posix_spawn_file_actions_adddup2(&plan.actions, child_output, 1);
  ::posix_spawn_file_actions_addclosefrom_np(&plan.actions, 3);
  sigset_t signals;
  sigemptyset(&signals);
  ::posix_spawnattr_setsigmask(&plan.attributes, &signals);
  // All that can be set: who started us may have had some ignored (nohup, a shell's background job).
  for (int signal = 1; signal < SIGRTMIN; ++signal) {
    if (signal != SIGKILL && signal != SIGSTOP) sigaddset(&signals, signal);
  }
  ::posix_spawnattr_setsigdefault(&plan.attributes, &signals);
  ::posix_spawnattr_setpgroup(&plan.attributes, 0);
  ::posix_spawnattr_setflags(&plan.attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
}

class ExecChannel final : public DescriptorChannel {
 public:
  ExecChannel(UniqueFd output, UniqueFd input, std::unique_ptr<ExecChild> child, StopSource& stop,
              std::string_view description)
      : DescriptorChannel(std::move(output), std::move(input), stop, description), child_(std::move(child)) {}

  ~ExecChannel() override {
    // The child sees the end of both pipes before its own destructor waits for it.
    write_end().reset();
    read_end().reset();
  }

  Result<std::size_t> read(std::span<const iovec> into) override {
    has_reader_.store(true, std::memory_order_relaxed);
    return DescriptorChannel::read(into);
  }

  // Whether a command that fails has taken all our bytes before it does is chance: its status is the reason either way.
  Result<void> write(std::span<const iovec> from) override {
    auto written = DescriptorChannel::write(from);
    if (written || written.error().sys_errno() != EPIPE) return written;
    const auto status = child_->reap_within(natural_end);
    if (!status || *status == 0) return written;
    return std::move(written).error().with(fmt::format("{}: the command {}", describe(), describe_exit(*status)));
  }

  Result<void> finish_writing() override {
    MD_CHECK(DescriptorChannel::finish_writing());
    bool output_open = true;
    while (true) {
      const bool drain = output_open && !has_reader_.load(std::memory_order_relaxed);
      pollfd polled[3] = {{stop().fd(), POLLIN, 0}, {child_->pid_fd(), POLLIN, 0}, {read_end().get(), POLLIN, 0}};
      const int ready = ::poll(polled, drain ? 3 : 2, -1);
      if (stop().requested()) {
        child_->end(after_sigterm);
        return cancelled_error();
      }
      if (ready < 0 && errno != EINTR) return Error::from_errno("wait for the command");
      if (ready <= 0) continue;
      if (polled[1].revents != 0) break;
      if (drain && polled[2].revents != 0) output_open = drop_output();
    }
    const int status = child_->reap();
    if (status == 0) return {};
    return Error(ErrorKind::peer, fmt::format("{}: the command {}", describe(), describe_exit(status)));
  }

 private:
  // False at the end of the child's output.
  bool drop_output() noexcept {
    char waste[4096];
    const ssize_t got = ::read(read_end().get(), waste, sizeof waste);
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
  }

  std::unique_ptr<ExecChild> child_;
  std::atomic<bool> has_reader_{false};
};

}  // namespace

std::string describe_exit(int status) {
  if (WIFSIGNALED(status)) return fmt::format("was ended by signal {}", WTERMSIG(status));
  return fmt::format("ended with status {}", WEXITSTATUS(status));
}

ExecChild::ExecChild(pid_t pid, UniqueFd pid_fd, UniqueFd input, UniqueFd output) noexcept
    : pid_(pid), pid_fd_(std::move(pid_fd)), input_(std::move(input)), output_(std::move(output)) {}

Result<std::unique_ptr<ExecChild>> ExecChild::start(std::span<const std::string> argv, UniqueFd input) {
  if (argv.empty() || argv[0].empty()) return plan_error("exec: needs a program to run");
  Pipe to_child;
  if (input) {
    if (input.get() <= 2) {
      MD_TRY(input, input.duplicate());
    }
    to_child.read = std::move(input);
  } else {
    MD_TRY(to_child, make_pipe());
  }
  MD_TRY(Pipe from_child, make_pipe());
  SpawnPlan plan;
  plan_child(plan, to_child.read.get(), from_child.write.get());
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  pid_t pid = 0;
  const int failure = ::posix_spawn(&pid, argv[0].c_str(), &plan.actions, &plan.attributes, arguments.data(), environ);
  if (failure != 0)
    return Error(ErrorKind::io, fmt::format("Failed to execute child process “{}” ({})", printable(argv[0], 256),
                                            Error::from_errno("", failure).text().substr(2)));
  UniqueFd pid_fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  const int pid_fd_error = errno;
  auto child = std::unique_ptr<ExecChild>(
      new ExecChild(pid, std::move(pid_fd), std::move(to_child.write), std::move(from_child.read)));
  if (child->pid_fd() < 0) return Error::from_errno("watch the command (pidfd_open)", pid_fd_error);
  return child;
}

bool ExecChild::ends_within(milliseconds time) const noexcept {
  const auto deadline = std::chrono::steady_clock::now() + time;
  while (true) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd polled{pid_fd_.get(), POLLIN, 0};
    const int ready = ::poll(&polled, 1, static_cast<int>(std::max(left, milliseconds(0)).count()));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

int ExecChild::reap() noexcept {
  while (!reaped_) {
    if (::waitpid(pid_, &status_, 0) >= 0 || errno != EINTR) reaped_ = true;
  }
  return status_;
}

std::optional<int> ExecChild::reap_within(milliseconds time) noexcept {
  if (!reaped_ && !ends_within(time)) return std::nullopt;
  return reap();
}

void ExecChild::end(milliseconds grace) noexcept {
  if (reaped_) return;
  ::kill(-pid_, SIGTERM);
  if (!ends_within(grace)) ::kill(-pid_, SIGKILL);
  reap();
}

int ExecChild::finish(milliseconds grace) noexcept {
  if (!reaped_ && !ends_within(grace)) end(after_sigterm);
  return reap();
}

ExecChild::~ExecChild() {
  input_.reset();
  output_.reset();
  if (reaped_) return;
  if (ends_within(natural_end))
    reap();
  else
    end(after_sigterm);
}

std::unique_ptr<Channel> make_exec_channel(std::unique_ptr<ExecChild> child, StopSource& stop,
                                           std::string_view description) {
  UniqueFd input = child->take_input();
  UniqueFd output = child->take_output();
  return std::make_unique<ExecChannel>(std::move(output), std::move(input), std::move(child), stop, description);
}

}  // namespace migrationd::transports
