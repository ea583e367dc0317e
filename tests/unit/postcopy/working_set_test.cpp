// SPDX-License-Identifier: Apache-2.0
#include "postcopy/working_set.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;
using namespace migrationd::postcopy;

namespace {

const std::vector<BlockShape> shapes{{"pc.ram", 1000, 1}, {"rom", 8, 1}};
const FileState file{123456, 1700000000123456789};
const std::vector<PageRange> order{{0, {900, 100}}, {1, {7, 1}}, {0, {0, 1}}};

std::string refused(const Bytes& bytes, const FileState& of = file, std::span<const BlockShape> blocks = shapes) {
  const auto decoded = decode_working_set(bytes, of, blocks);
  REQUIRE(decoded.has_error());
  return decoded.error().text();
}

bool says(const std::string& text, std::string_view words) { return text.find(words) != std::string::npos; }

}  // namespace

TEST_CASE("WorkingSet.comes_back_as_it_was_written") {
  const auto decoded = decode_working_set(encode_working_set(file, shapes, order), file, shapes);
  REQUIRE(decoded.has_value());
  CHECK(*decoded == order);
  const auto none = decode_working_set(encode_working_set(file, shapes, {}), file, shapes);
  REQUIRE(none.has_value());
  CHECK(none->empty());
}

TEST_CASE("WorkingSet.of_another_file_or_machine_does_not_count") {
  const Bytes bytes = encode_working_set(file, shapes, order);
  CHECK(says(refused(bytes, {123457, file.modified_ns}), "another file"));
  CHECK(says(refused(bytes, {file.size, file.modified_ns + 1}), "another file"));
  CHECK(says(refused(bytes, file, std::vector<BlockShape>{{"pc.ram", 1000, 1}}), "other memory"));
  CHECK(says(refused(bytes, file, std::vector<BlockShape>{{"pc.ram", 1001, 1}, {"rom", 8, 1}}), "'pc.ram' of 1000"));
  CHECK(says(refused(bytes, file, std::vector<BlockShape>{{"pc.ram", 1000, 1}, {"rum", 8, 1}}), "'rom'"));
}

TEST_CASE("WorkingSet.cut_off_at_any_byte_or_with_more_behind_it_is_damaged") {
  const Bytes bytes = encode_working_set(file, shapes, order);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    CHECK(decode_working_set(ByteView(bytes).first(size), file, shapes).has_error());
  }
  Bytes longer = bytes;
  longer.push_back(std::byte{0});
  CHECK(says(refused(longer), "its length"));
  CHECK(says(refused(Bytes(most_working_set_bytes + 1)), "too long"));
}

TEST_CASE("WorkingSet.runs_outside_of_the_memory_are_refused") {
  const auto with = [](std::uint32_t block, std::uint32_t count, std::uint64_t first) {
    ByteWriter out;
    const Bytes head = encode_working_set(file, shapes, {});
    out.bytes(head);
    out.patch_u32(head.size() - 4, 1);
    out.u32(block).u32(count).u64(first);
    return std::move(out).take();
  };
  CHECK(decode_working_set(with(1, 8, 0), file, shapes).has_value());
  CHECK(says(refused(with(2, 1, 0)), "no block 2"));
  CHECK(says(refused(with(1, 0, 0)), "pages 0+0"));
  CHECK(says(refused(with(1, 1, 8)), "pages 8+1"));
  CHECK(says(refused(with(1, 8, 1)), "pages 1+8"));
  CHECK(says(refused(with(0, 0xffffffff, ~std::uint64_t{0})), "'pc.ram'"));
  Bytes many = with(0, 1, 0);
  ByteWriter patched;
  patched.bytes(many);
  patched.patch_u32(many.size() - 20, most_working_set_runs + 1);
  CHECK(says(refused(std::move(patched).take()), "262145 runs"));
}

TEST_CASE("WorkingSet.what_is_known_stays_in_front_and_no_page_is_named_twice") {
  const std::vector<PageRange> then{{0, {899, 3}}, {1, {6, 2}}, {0, {2, 1}}, {0, {1, 5}}};
  CHECK(join_working_sets(shapes, order, then) == std::vector<PageRange>{{0, {900, 100}},
                                                                         {1, {7, 1}},
                                                                         {0, {0, 1}},
                                                                         {0, {899, 1}},
                                                                         {1, {6, 1}},
                                                                         {0, {2, 1}},
                                                                         {0, {1, 1}},
                                                                         {0, {3, 3}}});
  CHECK(join_working_sets(shapes, {}, std::vector<PageRange>{{0, {5, 1}}, {0, {6, 1}}}) ==
        std::vector<PageRange>{{0, {5, 2}}});
}
