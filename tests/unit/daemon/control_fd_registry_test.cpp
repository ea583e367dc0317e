// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/fd_registry.hpp"

#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

using namespace migrationd;
using namespace migrationd::control;

namespace {

// A file in memory, opened once more with `flags` so that its status flags are its own.
class File {
 public:
  File() : memory_(::memfd_create("fd-registry-test", MFD_CLOEXEC)) { REQUIRE(bool(memory_)); }
  // On the build's disk: memory takes O_DIRECT since Linux 6.6 only.
  static File on_disk() { return File(UniqueFd(::open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600))); }
  UniqueFd open(int flags) const {
    UniqueFd fd(::open(("/proc/self/fd/" + std::to_string(memory_.get())).c_str(), flags | O_CLOEXEC));
    REQUIRE(bool(fd));
    return fd;
  }

 private:
  explicit File(UniqueFd file) : memory_(std::move(file)) { REQUIRE(bool(memory_)); }

  UniqueFd memory_;
};

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

template <class T>
std::string error_of(const Result<T>& result) {
  REQUIRE_FALSE(bool(result));
  return result.error().text();
}

}  // namespace

TEST_CASE("FdRegistry.named_descriptor_can_be_taken_once") {
  FdSets sets;
  FdRegistry registry(sets);
  File file;
  REQUIRE(bool(registry.name("migrate", file.open(O_WRONLY))));
  CHECK(registry.take_named("migrate").has_value());
  CHECK(error_of(registry.take_named("migrate")) == "File descriptor named 'migrate' has not been found");
  CHECK(error_of(registry.close_named("migrate")) == "File descriptor named 'migrate' not found");
}

TEST_CASE("FdRegistry.used_name_is_replaced_and_its_descriptor_closed") {
  FdSets sets;
  FdRegistry registry(sets);
  File file;
  UniqueFd first = file.open(O_RDONLY);
  const int old = first.get();
  REQUIRE(bool(registry.name("a", std::move(first))));
  UniqueFd second = file.open(O_RDONLY);
  const int kept = second.get();
  REQUIRE(bool(registry.name("a", std::move(second))));
  CHECK_FALSE(is_open(old));
  auto taken = registry.take_named("a");
  REQUIRE(taken.has_value());
  CHECK(taken->get() == kept);
}

TEST_CASE("FdRegistry.name_must_not_start_with_a_digit_and_may_be_empty") {
  FdSets sets;
  FdRegistry registry(sets);
  File file;
  UniqueFd fd = file.open(O_RDONLY);
  const int number = fd.get();
  CHECK(error_of(registry.name("7up", std::move(fd))) == "Parameter 'fdname' expects a name not starting with a digit");
  CHECK_FALSE(is_open(number));
  CHECK(bool(registry.name("", file.open(O_RDONLY))));
  CHECK(bool(registry.close_named("")));
}

TEST_CASE("FdRegistry.names_belong_to_one_socket_and_sets_to_all") {
  FdSets sets;
  FdRegistry first(sets);
  FdRegistry second(sets);
  File file;
  REQUIRE(bool(first.name("mine", file.open(O_RDONLY))));
  CHECK(error_of(second.close_named("mine")) == "File descriptor named 'mine' not found");
  REQUIRE(sets.add(file.open(O_RDONLY), 3, std::nullopt).has_value());
  CHECK(first.open_fdset("/dev/fdset/3", O_RDONLY).has_value());
  CHECK(second.open_fdset("/dev/fdset/3", O_RDONLY).has_value());
}

TEST_CASE("FdSets.unnumbered_set_gets_the_lowest_unused_number") {
  FdSets sets;
  File file;
  const auto add = [&](std::optional<std::int64_t> id) {
    auto added = sets.add(file.open(O_RDONLY), id, std::nullopt);
    REQUIRE(added.has_value());
    return added->fdset_id;
  };
  CHECK(add(std::nullopt) == 0);
  CHECK(add(1) == 1);
  CHECK(add(std::nullopt) == 2);
  REQUIRE(bool(sets.remove(1, std::nullopt)));
  CHECK(add(std::nullopt) == 1);
  CHECK(error_of(sets.add(file.open(O_RDONLY), -1, std::nullopt)) ==
        "Parameter 'fdset-id' expects a non-negative value");
}

TEST_CASE("FdSets.list_is_in_descending_order_with_members_in_order_of_addition") {
  FdSets sets;
  File file;
  REQUIRE(sets.add(file.open(O_RDONLY), 5, "first").has_value());
  REQUIRE(sets.add(file.open(O_RDONLY), 9, std::nullopt).has_value());
  const auto second = sets.add(file.open(O_WRONLY), 5, std::nullopt);
  REQUIRE(second.has_value());
  const auto views = sets.list();
  REQUIRE(views.size() == 2);
  CHECK(views[0].fdset_id == 9);
  CHECK(views[1].fdset_id == 5);
  REQUIRE(views[1].members.size() == 2);
  CHECK(views[1].members[0]->opaque == "first");
  CHECK_FALSE(views[1].members[1]->opaque.has_value());
  CHECK(views[1].members[1]->fd.get() == second->fd);
}

TEST_CASE("FdSets.open_wants_exactly_the_access_mode_and_direct_flag") {
  FdSets sets;
  File file;
  REQUIRE(sets.add(file.open(O_RDWR), 1, std::nullopt).has_value());
  CHECK(error_of(sets.open("/dev/fdset/1", O_WRONLY | O_CREAT)) ==
        "Failed to find file descriptor with matching flags=0x41");
  CHECK(error_of(sets.open("/dev/fdset/1", O_RDONLY)) == "Failed to find file descriptor with matching flags=0x0");
  CHECK(error_of(sets.open("/dev/fdset/1", O_WRONLY | O_DIRECT)) ==
        "Failed to find file descriptor with matching flags=0x4001");
  CHECK(sets.open("/dev/fdset/1", O_RDWR).has_value());
  CHECK(error_of(sets.open("/dev/fdset/77", O_RDONLY)) == "Failed to find fdset /dev/fdset/77");
  for (const std::string name : {"abc", "-1", "1x", "", "99999999999999999999"}) {
    CHECK(error_of(sets.open("/dev/fdset/" + name, O_RDONLY)) == "Could not parse fdset /dev/fdset/" + name);
  }
}

TEST_CASE("FdSets.open_takes_the_member_added_last_and_clears_other_flags") {
  FdSets sets;
  File file;
  REQUIRE(sets.add(file.open(O_WRONLY), 1, std::nullopt).has_value());
  UniqueFd last = file.open(O_WRONLY | O_APPEND);
  REQUIRE(::lseek(last.get(), 40, SEEK_SET) == 40);
  REQUIRE(sets.add(std::move(last), 1, std::nullopt).has_value());
  const auto lent = sets.open("/dev/fdset/1", O_WRONLY | O_CREAT);
  REQUIRE(lent.has_value());
  CHECK(::lseek(lent->get(), 0, SEEK_CUR) == 40);  // the position is shared with the member
  CHECK((::fcntl(lent->get(), F_GETFL) & O_APPEND) == 0);
  CHECK((::fcntl(lent->get(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("FdSets.emptied_set_stays_listed_while_a_duplicate_is_open") {
  FdSets sets;
  File file;
  REQUIRE(sets.add(file.open(O_RDONLY), 4, std::nullopt).has_value());
  auto lent = sets.open("/dev/fdset/4", O_RDONLY);
  REQUIRE(lent.has_value());
  REQUIRE(bool(sets.remove(4, std::nullopt)));
  REQUIRE(sets.list().size() == 1);
  CHECK(sets.list()[0].members.empty());
  lent->reset();
  CHECK(sets.list().empty());
}

TEST_CASE("FdSets.remove_says_what_it_did_not_find") {
  FdSets sets;
  File file;
  CHECK(error_of(sets.remove(9, std::nullopt)) == "File descriptor named 'fdset-id:9' not found");
  CHECK(error_of(sets.remove(9, 3)) == "File descriptor named 'fdset-id:9, fd:3' not found");
  const auto added = sets.add(file.open(O_RDONLY), 9, std::nullopt);
  REQUIRE(added.has_value());
  CHECK(error_of(sets.remove(9, 9999)) == "File descriptor named 'fdset-id:9, fd:9999' not found");
  CHECK(bool(sets.remove(9, added->fd)));
  CHECK_FALSE(is_open(added->fd));
  CHECK(sets.list().empty());
}

TEST_CASE("FdSets.what_a_mapped_file_needs_and_nothing_else") {
  struct Row {
    std::vector<int> flags;  // of one open() call each; -1: a duplicate of the one before
    bool direct;
    std::string refusal;
  };
  constexpr int w = O_WRONLY;
  constexpr int d = O_WRONLY | O_DIRECT;
  const Row rows[] = {
      {{w}, false, ""},
      {{w, w}, false, ""},
      {{w, d}, true, ""},
      {{d, w}, true, ""},
      {{w, -1}, false, "/dev/fdset/0: its descriptors are duplicates of each other; open the file twice"},
      {{w, O_RDONLY}, false, "/dev/fdset/0: a descriptor is not write-only"},
      {{w, O_RDWR}, false, "/dev/fdset/0: a descriptor is not write-only"},
      {{w, d}, false, "/dev/fdset/0: a descriptor was opened with O_DIRECT, but direct-io is off"},
      {{w, w, w}, false, "/dev/fdset/0: 3 descriptors where one or two are wanted"},
      {{w}, true, "/dev/fdset/0: 1 descriptors where exactly two are wanted"},
      {{w, d, w}, true, "/dev/fdset/0: 3 descriptors where exactly two are wanted"},
      {{w, w}, true, "/dev/fdset/0: exactly one of its descriptors must be opened with O_DIRECT"},
      {{d, -1}, true, "/dev/fdset/0: exactly one of its descriptors must be opened with O_DIRECT"},
  };
  for (const Row& row : rows) {
    FdSets sets;
    const File file = File::on_disk();
    UniqueFd last;
    for (const int flags : row.flags) {
      UniqueFd next = flags < 0 ? last.duplicate().value() : file.open(flags);
      REQUIRE(next);
      last = next.duplicate().value();
      REQUIRE(sets.add(std::move(next), 0, std::nullopt).has_value());
    }
    const auto checked = sets.check_mapped("/dev/fdset/0", O_WRONLY, row.direct);
    CHECK((checked ? "" : checked.error().text()) == row.refusal);
  }
  FdSets sets;
  File one;
  File other;
  REQUIRE(sets.add(one.open(O_WRONLY), 0, std::nullopt).has_value());
  REQUIRE(sets.add(other.open(O_WRONLY), 0, std::nullopt).has_value());
  CHECK(error_of(sets.check_mapped("/dev/fdset/0", O_WRONLY, false)) ==
        "/dev/fdset/0: its two descriptors are of different files");
}
