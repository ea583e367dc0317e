// SPDX-License-Identifier: Apache-2.0
//
// Properties of tables nobody wrote: what is saved loads and saves again as the same bytes, the description accounts
// for every byte, and no cut or altered byte does more than fail.
#include "tests/unit/vmstate/generated.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/sampled.hpp"

#include <nlohmann/json.hpp>

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;

namespace {

using Json = nlohmann::json;

constexpr std::uint64_t number_of_tables = sampling ? 400 : 4000;

Bytes saved_bytes(const Description& table, GeneratedObject& object, Layout* layout = nullptr) {
  ByteWriter out;
  const auto saved = save_state(table, object.address(), out, layout);
  INFO((saved ? std::string() : saved.error().text()));
  REQUIRE(saved.has_value());
  return std::move(out).take();
}

// Bytes that a description's object says are there.
std::uint64_t described_bytes(const Json& description) {
  std::uint64_t sum = 0;
  for (const Json& field : description.at("fields")) {
    const auto size = field.at("size").get<std::uint64_t>();
    if (field.contains("struct")) CHECK(described_bytes(field.at("struct")) == size);
    if (field.contains("vmsd_name")) CHECK(described_bytes(field) == size);
    sum += size * field.value("array_len", std::uint64_t{1});
  }
  if (!description.contains("subsections")) return sum;
  for (const Json& part : description.at("subsections")) {
    sum += 2 + part.at("vmsd_name").get<std::string>().size() + 4 + described_bytes(part);
  }
  return sum;
}

}  // namespace

TEST_CASE("Generated.tables_survive_the_round_trip_and_describe_every_byte") {
  for (std::uint64_t seed = 0; seed < number_of_tables; ++seed) {
    INFO("seed " << seed);
    TableMaker maker(seed);
    const Description& table = maker.make();
    REQUIRE(fault_name(check_now(table)) == "none");
    GeneratedObject object(table);
    object.fill(maker.random());
    Layout layout;
    const Bytes bytes = saved_bytes(table, object, &layout);
    const std::uint64_t described = described_bytes(Json::parse("{" + json_members(layout) + "}"));
    REQUIRE(described == bytes.size());

    GeneratedObject loaded(table);
    loaded.agree_with(object);
    ByteReader in(bytes);
    const auto result = load_state(table, loaded.address(), table.version, in);
    INFO((result ? std::string() : result.error().text()));
    REQUIRE(result.has_value());
    REQUIRE(in.at_end());
    const bool same = saved_bytes(table, loaded) == bytes;
    REQUIRE(same);
  }
}

TEST_CASE("Generated.cut_and_altered_bytes_are_refused_or_save_again") {
  for (std::uint64_t seed = 0; seed < number_of_tables; seed += 4) {
    INFO("seed " << seed);
    TableMaker maker(seed);
    const Description& table = maker.make();
    GeneratedObject object(table);
    object.fill(maker.random());
    Bytes bytes = saved_bytes(table, object);
    for (int round = 0; round < 8; ++round) {
      GeneratedObject loaded(table);
      loaded.agree_with(object);
      Bytes altered = bytes;
      altered[maker.random()() % altered.size()] = static_cast<std::byte>(maker.random()() & 0xff);
      if (round % 2 == 0) altered.resize(maker.random()() % altered.size());
      ByteReader in(altered);
      if (!load_state(table, loaded.address(), table.version, in)) continue;
      saved_bytes(table, loaded);
    }
  }
}

TEST_CASE("Generated.every_shape_and_rule_comes_up") {
  std::size_t shapes[5] = {};
  std::size_t conditional = 0;
  std::size_t ended = 0;
  std::size_t allocated = 0;
  std::size_t parts = 0;
  std::size_t versioned = 0;
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    TableMaker maker(seed);
    const Description& table = maker.make();
    parts += table.parts.size();
    for (const Field& row : table.rows) {
      ++shapes[static_cast<std::size_t>(row.shape->kind)];
      conditional += row.exists != nullptr ? 1 : 0;
      ended += row.last_version < table.version ? 1 : 0;
      allocated += row.loader_allocates ? 1 : 0;
      versioned += row.is_versioned ? 1 : 0;
    }
  }
  for (const ShapeKind kind : {ShapeKind::flat, ShapeKind::pointers, ShapeKind::sequence, ShapeKind::view}) {
    CHECK(shapes[static_cast<std::size_t>(kind)] > 20);
  }
  CHECK(conditional > 20);
  CHECK(ended > 5);
  CHECK(allocated > 20);
  CHECK(parts > 100);
  CHECK(versioned > 20);
}
