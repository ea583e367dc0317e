// SPDX-License-Identifier: Apache-2.0
// The cpr channel's list: written as QEMU writes it, read however it is cut, and every way in which it can be wrong.
#include "protocol/cpr/cpr_state.hpp"

#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <iterator>

using namespace migrationd;
using namespace migrationd::cpr;

namespace {

UniqueFd some_descriptor() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

std::vector<UniqueFd> some_descriptors(std::size_t count) {
  std::vector<UniqueFd> out;
  for (std::size_t i = 0; i < count; ++i) out.push_back(some_descriptor());
  return out;
}

std::size_t open_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

// A list of these names, all with id 0, carrier bytes included.
Bytes list_of(const std::vector<std::string>& names) {
  ByteWriter out;
  encode_header(out);
  for (const std::string& name : names) {
    encode_entry(out, name, 0);
    out.u8(std::to_integer<std::uint8_t>(carrier));
  }
  out.u8(0);
  return std::move(out).take();
}

// What becomes of these bytes, with that many descriptors in front.
std::string verdict(const Bytes& bytes, std::size_t descriptors) {
  CprStateDecoder decoder;
  auto fed = decoder.feed(bytes, some_descriptors(descriptors));
  if (!fed) return fed.error().text();
  auto entries = std::move(decoder).finish();
  return entries ? "taken" : entries.error().text();
}

// An entry written by hand: length, bytes of the name, id, carrier; then the end.
Bytes entry_by_hand(std::uint32_t length, std::string_view name) {
  ByteWriter out;
  encode_header(out);
  out.u8(1).u32(length).text(name).u32(0).u8(0x20).u8(0);
  return std::move(out).take();
}

}  // namespace

TEST_CASE("CprState.is_written_as_QEMU_writes_it") {
  ByteWriter out;
  encode_header(out);
  encode_entry(out, "ram0", 0);
  constexpr std::array<unsigned char, 22> expected{0x51, 0x43, 0x50, 0x52, 0,   0,   0, 1, 1, 0, 0,
                                                   0,    5,    'r',  'a',  'm', '0', 0, 0, 0, 0, 0};
  CHECK(out.view().size() == expected.size());
  CHECK(std::equal(expected.begin(), expected.end(), reinterpret_cast<const unsigned char*>(out.view().data())));
}

TEST_CASE("CprState.is_the_same_however_bytes_and_descriptors_are_cut") {
  const std::vector<std::string> names{"/rom@etc/acpi/rsdp", "0000:00:02.0/vga.vram", "ram0"};
  const Bytes bytes = list_of(names);
  for (std::size_t step = 1; step <= bytes.size(); ++step) {
    CprStateDecoder decoder;
    std::vector<ino_t> given;
    std::size_t entry = 0;
    for (std::size_t at = 0; at < bytes.size(); at += step) {
      const ByteView piece = ByteView(bytes).subspan(at, std::min(step, bytes.size() - at));
      // All of them with the first bytes: as early as they can come.
      std::vector<UniqueFd> descriptors;
      for (; entry < names.size(); ++entry) {
        descriptors.push_back(some_descriptor());
        given.push_back(static_cast<ino_t>(descriptors.back().get()));
      }
      REQUIRE(bool(decoder.feed(piece, std::move(descriptors))));
    }
    CHECK(decoder.list_ended());
    auto entries = std::move(decoder).finish();
    REQUIRE(entries.has_value());
    REQUIRE(entries->size() == names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      CHECK((*entries)[i].name == names[i]);
      CHECK((*entries)[i].id == 0);
      CHECK(static_cast<ino_t>((*entries)[i].fd.get()) == given[i]);
    }
  }
}

TEST_CASE("CprState.takes_each_descriptor_with_its_carrier_byte") {
  const Bytes bytes = list_of({"a", "b"});
  // 8 of the header; 1 + 4 + 2 + 4 of an entry, then its carrier.
  const std::array<std::size_t, 4> cuts{19, 20, 31, 32};
  CprStateDecoder decoder;
  std::size_t at = 0;
  for (std::size_t i = 0; i < cuts.size(); ++i) {
    REQUIRE(bool(decoder.feed(ByteView(bytes).subspan(at, cuts[i] - at), some_descriptors(i % 2))));
    at = cuts[i];
  }
  CHECK_FALSE(decoder.list_ended());
  REQUIRE(bool(decoder.feed(ByteView(bytes).subspan(at), {})));
  CHECK(std::move(decoder).finish().has_value());
}

TEST_CASE("CprState.names_may_have_1_to_255_bytes") {
  CHECK(verdict(list_of({std::string(255, 'n')}), 1) == "taken");
  CHECK(verdict(list_of({"n"}), 1) == "taken");
  CHECK_FALSE(bool(check_name("")));
  CHECK_FALSE(bool(check_name(std::string(256, 'n'))));
  CHECK_FALSE(bool(check_name(std::string_view("a\0b", 3))));
  CHECK(bool(check_name(std::string(255, 'n'))));
}

TEST_CASE("CprState.an_empty_list_is_a_list") { CHECK(verdict(list_of({}), 0) == "taken"); }

TEST_CASE("CprState.one_name_may_come_with_two_ids") {
  ByteWriter out;
  encode_header(out);
  for (const std::int32_t id : {0, -1}) {
    encode_entry(out, "vfio", id);
    out.u8(0x20);
  }
  out.u8(0);
  CprStateDecoder decoder;
  REQUIRE(bool(decoder.feed(out.view(), some_descriptors(2))));
  auto entries = std::move(decoder).finish();
  REQUIRE(entries.has_value());
  CHECK((*entries)[1].id == -1);
}

TEST_CASE("CprState.what_is_wrong_is_told") {
  Bytes other = list_of({"ram0"});
  other[3] = std::byte{'X'};
  CHECK(verdict(other, 1) == "cpr channel: Not a migration stream (bad magic 51435058)");
  other = list_of({"ram0"});
  other[7] = std::byte{2};
  CHECK(verdict(other, 1) == "cpr channel: Unsupported migration stream version 2");
  other = list_of({"ram0"});
  other[8] = std::byte{7};
  CHECK(verdict(other, 1) ==
        "cpr channel: entry 1: byte 0x07 where an entry (0x01) or the end of the list (0x00) is due");
  CHECK(verdict(entry_by_hand(0, ""), 1) == "cpr channel: entry 1: a name of 0 bytes with its NUL, 2 to 256 are taken");
  CHECK(verdict(entry_by_hand(1, std::string_view("\0", 1)), 1) ==
        "cpr channel: entry 1: a name of 1 bytes with its NUL, 2 to 256 are taken");
  CHECK(verdict(entry_by_hand(257, std::string(257, 'x')), 1) ==
        "cpr channel: entry 1: a name of 257 bytes with its NUL, 2 to 256 are taken");
  CHECK(verdict(entry_by_hand(0xffffffff, "x"), 1) ==
        "cpr channel: entry 1: a name of 4294967295 bytes with its NUL, 2 to 256 are taken");
  CHECK(verdict(entry_by_hand(4, "ram0"), 1) == "cpr channel: entry 1: name 'ram0' does not end with its first NUL");
  CHECK(verdict(entry_by_hand(4, std::string_view("r\0m\0", 4)), 1) ==
        "cpr channel: entry 1: name 'r\\x00m\\x00' does not end with its first NUL");
  CHECK(verdict(list_of({"ram0", "ram0"}), 2) == "cpr channel: entry 2: 'ram0' (id 0) is listed twice");
  CHECK(verdict(list_of({"ram0"}), 0) == "cpr channel: entry 1: 'ram0' (id 0) came without its descriptor");
  CHECK(verdict(list_of({"ram0", "ram1"}), 1) == "cpr channel: entry 2: 'ram1' (id 0) came without its descriptor");
  CHECK(verdict(list_of({"ram0"}), 3) == "cpr channel: 2 more descriptors than entries");
  other = list_of({"ram0"});
  other.push_back(std::byte{5});
  CHECK(verdict(other, 1) == "cpr channel: bytes behind the end of the list");
}

TEST_CASE("CprState.cut_off_anywhere_it_says_what_is_missing") {
  const Bytes bytes = list_of({"ram0"});
  for (std::size_t length = 1; length < bytes.size(); ++length) {
    const std::string said = verdict(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length)), 1);
    CHECK(said.find("cpr channel: it ends after " + std::to_string(length) + " bytes") == 0);
  }
  CHECK(verdict({}, 0) == "cpr channel: it ends after 0 bytes and 0 entries, where the magic number is due");
}

TEST_CASE("CprState.more_entries_than_a_list_may_have_are_refused") {
  CprStateDecoder decoder;
  Result<void> fed;
  for (std::size_t i = 0; i <= most_entries && fed; ++i) {
    ByteWriter out;
    if (i == 0) encode_header(out);
    encode_entry(out, "n" + std::to_string(i), 0);
    out.u8(0x20);
    fed = decoder.feed(out.view(), some_descriptors(1));
    CHECK(bool(fed) == (i < most_entries));
  }
  REQUIRE_FALSE(bool(fed));
  CHECK(fed.error().kind() == ErrorKind::limit);
}

TEST_CASE("CprState.no_descriptor_is_left_open") {
  const std::size_t before = open_descriptors();
  for (const std::size_t descriptors : {0, 1, 2, 5}) {
    verdict(list_of({"a", "b"}), descriptors);
    verdict(list_of({"a", "a"}), descriptors);
    verdict(entry_by_hand(0, ""), descriptors);
    verdict({}, descriptors);
  }
  CHECK(open_descriptors() == before);
}
