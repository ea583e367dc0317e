// SPDX-License-Identifier: Apache-2.0
//
// Descriptors that clients passed: by name (getfd) and in numbered sets (add-fd), qmp.md section 7 and
// file-and-channels.md section 4.
//
// FdSets is one per process. FdRegistry is one per listening control socket: the names belong to the socket, so
// that a script may pass a descriptor over one connection and use it from the next. Both outlive any client.
//
// A member of a set is never handed out itself but duplicated; a set that was emptied while duplicates are open
// stays listed until the last is closed. The duplicate is closed by whoever has it, so the set looks whether that
// number still means the same file: a number reused for the very same file keeps an empty set listed a little
// longer, and that is all that can go wrong.
//
// Thread: control. Errors: ErrorKind::plan with QEMU 10.0's texts.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "transports/fd_source.hpp"

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::control {

class FdSets {
 public:
  struct Member {
    UniqueFd fd;
    std::optional<std::string> opaque;
  };
  struct Added {
    std::int64_t fdset_id;
    int fd;
  };
  struct SetView {
    std::int64_t fdset_id;
    std::vector<const Member*> members;  // in order of addition
  };

  // Without an id: a new set with the smallest unused number. The descriptor is closed on error.
  Result<Added> add(UniqueFd fd, std::optional<std::int64_t> fdset_id, std::optional<std::string> opaque);
  // One member, or all of them.
  Result<void> remove(std::int64_t fdset_id, std::optional<std::int64_t> fd);
  // Descending ids. Valid until the next change.
  std::vector<SetView> list();
  // See transports::FdSource::open_fdset.
  Result<UniqueFd> open(std::string_view path, int flags);
  // See transports::FdSource::check_mapped_fdset.
  Result<void> check_mapped(std::string_view path, int mode, bool direct);

 private:
  struct Lent {
    int fd;
    dev_t device;
    ino_t inode;
  };
  struct Set {
    std::vector<Member> members;
    std::vector<Lent> lent;
  };

  void forget_unused();
  Result<Set*> find(std::string_view path);

  std::map<std::int64_t, Set, std::greater<>> sets_;
};

class FdRegistry final : public transports::FdSource {
 public:
  explicit FdRegistry(FdSets& sets) : sets_(sets) {}

  // getfd: takes the descriptor, and closes it on error. A used name is replaced.
  Result<void> name(std::string_view name, UniqueFd fd);
  // closefd
  Result<void> close_named(std::string_view name);

  Result<UniqueFd> take_named(std::string_view name) override;
  Result<UniqueFd> open_fdset(std::string_view path, int flags) override { return sets_.open(path, flags); }
  Result<void> check_mapped_fdset(std::string_view path, int mode, bool direct) override {
    return sets_.check_mapped(path, mode, direct);
  }

  FdSets& sets() noexcept { return sets_; }

 private:
  FdSets& sets_;
  std::map<std::string, UniqueFd, std::less<>> named_;
};

}  // namespace migrationd::control
