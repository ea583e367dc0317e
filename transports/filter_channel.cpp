// SPDX-License-Identifier: Apache-2.0
#include "transports/filter_channel.hpp"

#include "transports/descriptor_channel.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>

namespace migrationd::transports {

namespace {

// Its output has ended, so only its exit is due.
constexpr std::chrono::milliseconds exit_grace{2000};

class FilterChannel final : public DescriptorChannel {
 public:
  FilterChannel(UniqueFd output, std::unique_ptr<ExecChild> child, StopSource& stop, std::string_view program,
                std::string_view description)
      : DescriptorChannel(std::move(output), DescriptorKind::pipe, stop, description),
        program_(program),
        child_(std::move(child)) {}

  // The program sees the end of its output before its own destructor waits for it.
  ~FilterChannel() override { read_end().reset(); }

  Result<std::size_t> read(std::span<const iovec> into) override {
    if (!status_) {
      MD_TRY(const std::size_t got, DescriptorChannel::read(into));
      if (got > 0) return got;
      status_ = child_->finish(exit_grace);
    }
    if (*status_ == 0) return std::size_t{0};
    return wire_error(fmt::format("{} could not read it to the end: it {}", program_, describe_exit(*status_)));
  }
  bool is_file() const noexcept override { return true; }
  bool bidirectional() const noexcept override { return false; }

 private:
  std::string program_;
  std::unique_ptr<ExecChild> child_;
  std::optional<int> status_;
};

}  // namespace

Result<std::string> find_program(std::string_view name) {
  const char* const set = std::getenv("PATH");
  std::string_view path = set != nullptr ? set : "/usr/bin:/bin";
  while (!path.empty()) {
    const std::size_t length = std::min(path.find(':'), path.size());
    const std::string candidate = fmt::format("{}/{}", path.substr(0, length), name);
    if (length > 0 && ::access(candidate.c_str(), X_OK) == 0) return candidate;
    path.remove_prefix(std::min(length + 1, path.size()));
  }
  return plan_error(fmt::format("{} is needed to read this file, but it is not installed", name));
}

Result<std::unique_ptr<ExecChild>> start_filter(const std::vector<std::string>& program, UniqueFd input) {
  std::vector<std::string> argv = program;
  MD_TRY(argv[0], find_program(program[0]));
  return ExecChild::start(argv, std::move(input));
}

std::unique_ptr<Channel> make_filter_channel(std::unique_ptr<ExecChild> child, StopSource& stop,
                                             std::string_view program, std::string_view description) {
  UniqueFd output = child->take_output();
  return std::make_unique<FilterChannel>(std::move(output), std::move(child), stop, program, description);
}

}  // namespace migrationd::transports
