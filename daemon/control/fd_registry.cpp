// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/fd_registry.hpp"

#include "base/limits.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <utility>

namespace migrationd::control {
namespace {

constexpr std::string_view fdset_prefix = "/dev/fdset/";
constexpr int matched_flags = O_ACCMODE | O_DIRECT;

// "N" of "/dev/fdset/N": decimal digits and nothing else.
std::optional<std::int64_t> parse_set_number(std::string_view digits) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc{} || end != digits.data() + digits.size() || number < 0) return std::nullopt;
  return number;
}

bool same_file(int one, int two) {
  struct stat first {};
  struct stat second {};
  if (::fstat(one, &first) != 0 || ::fstat(two, &second) != 0) return false;
  return first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

// Whether both come from one open() call. The kernel says so (kcmp), unless it is built without it or a sandbox forbids
// the call; then what the one has and the other has not is looked for: a status flag is the open file's, and O_NONBLOCK
// means nothing to a file. What nobody can tell: whether the client kept a duplicate and moves the position meanwhile.
bool same_open_file(int one, int two) {
  constexpr int kcmp_file = 0;
  const auto self = ::getpid();
  const long order = ::syscall(SYS_kcmp, self, self, kcmp_file, one, two);
  if (order >= 0) return order == 0;
  const int before = ::fcntl(one, F_GETFL);
  const int other = ::fcntl(two, F_GETFL);
  if (before < 0 || other < 0 || ::fcntl(one, F_SETFL, before ^ O_NONBLOCK) < 0) return false;
  const bool same = ((::fcntl(two, F_GETFL) ^ other) & O_NONBLOCK) != 0;
  ::fcntl(one, F_SETFL, before);
  return same;
}

Error set_not_found(std::int64_t fdset_id, std::optional<std::int64_t> fd) {
  return plan_error(fd ? fmt::format("File descriptor named 'fdset-id:{}, fd:{}' not found", fdset_id, *fd)
                       : fmt::format("File descriptor named 'fdset-id:{}' not found", fdset_id));
}

}  // namespace

Result<FdSets::Added> FdSets::add(UniqueFd fd, std::optional<std::int64_t> fdset_id,
                                  std::optional<std::string> opaque) {
  forget_unused();
  if (fdset_id && *fdset_id < 0) return plan_error("Parameter 'fdset-id' expects a non-negative value");
  std::int64_t id = 0;
  if (fdset_id) {
    id = *fdset_id;
  } else {
    while (sets_.contains(id)) ++id;
  }
  const int number = fd.get();
  sets_[id].members.push_back(Member{std::move(fd), std::move(opaque)});
  return Added{id, number};
}

Result<void> FdSets::remove(std::int64_t fdset_id, std::optional<std::int64_t> fd) {
  forget_unused();
  const auto set = sets_.find(fdset_id);
  if (set == sets_.end()) return set_not_found(fdset_id, fd);
  auto& members = set->second.members;
  if (!fd) {
    members.clear();
  } else if (std::erase_if(members, [&](const Member& member) { return member.fd.get() == *fd; }) == 0) {
    return set_not_found(fdset_id, fd);
  }
  forget_unused();
  return {};
}

std::vector<FdSets::SetView> FdSets::list() {
  forget_unused();
  std::vector<SetView> views;
  for (const auto& [id, set] : sets_) {
    auto& view = views.emplace_back(SetView{id, {}});
    for (const auto& member : set.members) view.members.push_back(&member);
  }
  return views;
}

Result<FdSets::Set*> FdSets::find(std::string_view path) {
  forget_unused();
  const auto number =
      path.starts_with(fdset_prefix) ? parse_set_number(path.substr(fdset_prefix.size())) : std::nullopt;
  if (!number) return plan_error(fmt::format("Could not parse fdset {}", printable(path)));
  const auto set = sets_.find(*number);
  if (set == sets_.end()) return plan_error(fmt::format("Failed to find fdset {}", path));
  return &set->second;
}

Result<UniqueFd> FdSets::open(std::string_view path, int flags) {
  MD_TRY(Set* const set, find(path));
  const int shown = flags & ~O_CLOEXEC;
  // Of several members that match, the one added last is taken.
  for (auto member = set->members.rbegin(); member != set->members.rend(); ++member) {
    const int have = ::fcntl(member->fd.get(), F_GETFL);
    if (have < 0 || (have & matched_flags) != (shown & matched_flags)) continue;
    MD_TRY(UniqueFd lent, member->fd.duplicate());
    // Status flags belong to the open file: what the opener did not ask for (O_APPEND, O_NONBLOCK) goes.
    if (::fcntl(lent.get(), F_SETFL, shown) < 0) return Error::from_errno(fmt::format("set flags of {}", path));
    struct stat status {};
    if (::fstat(lent.get(), &status) == 0) set->lent.push_back({lent.get(), status.st_dev, status.st_ino});
    return lent;
  }
  return plan_error(fmt::format("Failed to find file descriptor with matching flags={:#x}", shown));
}

Result<void> FdSets::check_mapped(std::string_view path, int mode, bool direct) {
  MD_TRY(const Set* const set, find(path));
  const auto& members = set->members;
  const auto refused = [&](std::string_view text) { return plan_error(fmt::format("{}: {}", path, text)); };
  if (members.size() > 2 || (direct && members.size() != 2)) {
    return refused(
        fmt::format("{} descriptors where {} wanted", members.size(), direct ? "exactly two are" : "one or two are"));
  }
  for (const Member& member : members) {
    if ((::fcntl(member.fd.get(), F_GETFL) & O_ACCMODE) == mode) continue;
    return refused(mode == O_WRONLY ? "a descriptor is not write-only" : "a descriptor is not read-only");
  }
  const auto count = std::count_if(members.begin(), members.end(), [](const Member& member) {
    return (::fcntl(member.fd.get(), F_GETFL) & O_DIRECT) != 0;
  });
  if (!direct && count != 0) return refused("a descriptor was opened with O_DIRECT, but direct-io is off");
  if (direct && count != 1) return refused("exactly one of its descriptors must be opened with O_DIRECT");
  if (members.size() < 2) return {};
  const int one = members[0].fd.get();
  const int two = members[1].fd.get();
  if (!same_file(one, two)) return refused("its two descriptors are of different files");
  if (same_open_file(one, two)) return refused("its descriptors are duplicates of each other; open the file twice");
  return {};
}

void FdSets::forget_unused() {
  for (auto& [id, set] : sets_) {
    std::erase_if(set.lent, [](const Lent& lent) {
      struct stat status {};
      return ::fstat(lent.fd, &status) != 0 || status.st_dev != lent.device || status.st_ino != lent.inode;
    });
  }
  std::erase_if(sets_, [](const auto& entry) { return entry.second.members.empty() && entry.second.lent.empty(); });
}

Result<void> FdRegistry::name(std::string_view name, UniqueFd fd) {
  if (!name.empty() && name.front() >= '0' && name.front() <= '9') {
    return plan_error("Parameter 'fdname' expects a name not starting with a digit");
  }
  named_.insert_or_assign(std::string(name), std::move(fd));
  return {};
}

Result<void> FdRegistry::close_named(std::string_view name) {
  const auto found = named_.find(name);
  if (found == named_.end()) return plan_error(fmt::format("File descriptor named '{}' not found", name));
  named_.erase(found);
  return {};
}

Result<UniqueFd> FdRegistry::take_named(std::string_view name) {
  const auto found = named_.find(name);
  if (found == named_.end()) return plan_error(fmt::format("File descriptor named '{}' has not been found", name));
  UniqueFd fd = std::move(found->second);
  named_.erase(found);
  return fd;
}

}  // namespace migrationd::control
