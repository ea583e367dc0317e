// SPDX-License-Identifier: Apache-2.0
//
// The JSON description: that it accounts for every byte (by a walk that knows nothing but the JSON), and its rules
// of compression, numbering and names.
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/everything.hpp"
#include "vmstate/configuration.hpp"
#include "vmstate/device_set.hpp"

#include <nlohmann/json.hpp>

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;
using Json = nlohmann::ordered_json;

namespace {

// The walk of a reader that has only the description.
bool walk(const Json& description, ByteReader& in) {
  for (const Json& field : description.at("fields")) {
    const auto repeat = field.value("array_len", 1U);
    for (unsigned i = 0; i < repeat; ++i) {
      const std::size_t start = in.position();
      if (field.at("type") == "struct") {
        if (!walk(field.at("struct"), in)) return false;
      } else if (!in.skip(field.at("size").get<std::size_t>())) {
        return false;
      }
      if (in.position() - start != field.at("size").get<std::size_t>()) return false;
    }
  }
  if (!description.contains("subsections")) return true;
  for (const Json& part : description.at("subsections")) {
    const auto marker = in.u8();
    if (!marker || *marker != 5) return false;
    const auto name = in.str8();
    if (!name || *name != part.at("vmsd_name").get<std::string>()) return false;
    const auto version = in.u32();
    if (!version || *version != part.at("version").get<std::uint32_t>()) return false;
    if (!walk(part, in)) return false;
  }
  return true;
}

template <class T>
Json describe_one(const DescriptionOf<T>& table, T object, Bytes* bytes = nullptr) {
  ByteWriter out;
  Layout layout;
  REQUIRE(save(table, object, out, &layout).has_value());
  if (bytes != nullptr) *bytes = std::move(out).take();
  return Json::parse("{" + json_members(layout) + "}");
}

const Json* find(const Json& description, std::string_view name, unsigned skip = 0) {
  for (const Json& field : description.at("fields")) {
    if (field.at("name") == name && skip-- == 0) return &field;
  }
  return nullptr;
}

struct Shapes {
  std::uint8_t one[1] = {};
  std::uint8_t fifo[512] = {};
  std::uint8_t count = 0;
  std::array<std::uint8_t, 4> list{};
  std::array<Pair, 3> pairs{};
  bool always() const { return true; }
};
constexpr Field shape_fields[] = {
    field<&Shapes::one>("one"),
    field<&Shapes::fifo>("fifo"),
    field<&Shapes::count>("count"),
    counted<&Shapes::list, &Shapes::count>("list"),
    structure<&Shapes::pairs>("pairs", pair_description),
    field<&Shapes::list>("guarded").when<&Shapes::always>(),
};
constexpr auto shapes = describe<Shapes>("shapes", 1).fields(shape_fields);
static_assert(check(shapes) == TableFault::none);

// A struct with a counted array: elements may differ in size although nothing has a predicate.
struct Ragged {
  std::uint8_t count = 0;
  std::array<std::uint8_t, 4> list{};
};
constexpr Field ragged_fields[] = {field<&Ragged::count>("count"), counted<&Ragged::list, &Ragged::count>("list")};
constexpr auto ragged = describe<Ragged>("ragged", 1).fields(ragged_fields);
struct RaggedPair {
  std::array<Ragged, 2> both{};
};
constexpr Field ragged_pair_fields[] = {structure<&RaggedPair::both>("both", ragged)};
constexpr auto ragged_pair = describe<RaggedPair>("ragged_pair", 1).fields(ragged_pair_fields);

}  // namespace

TEST_CASE("Description.accounts_for_every_byte") {
  Everything some = full();
  some.flag = false;
  some.inners[0].loud = true;
  for (const Everything& object : {full(), Everything{}, some}) {
    Bytes bytes;
    const Json json = describe_one(everything_description, object, &bytes);
    ByteReader in(bytes);
    CHECK(walk(json, in));
    CHECK(in.at_end());
  }
}

TEST_CASE("Description.has_the_keys_in_their_order") {
  Bytes bytes;
  Shapes object;
  ByteWriter out;
  Layout layout;
  REQUIRE(save(shapes, object, out, &layout).has_value());
  const std::string text = json_members(layout);
  CHECK(text.find(R"({"name": "one", "type": "uint8", "size": 1}, )"
                  R"({"name": "fifo", "array_len": 512, "type": "uint8", "size": 1}, )") != std::string::npos);
  CHECK(text.find(R"({"name": "pairs", "array_len": 3, "type": "struct", "struct": {"vmsd_name": "pair")") !=
        std::string::npos);
  CHECK(text.find(R"({"name": "guarded", "index": 0, "type": "uint8", "size": 1}, {"name": "guarded", "index": 1)") !=
        std::string::npos);
}

TEST_CASE("Description.has_no_entry_for_an_empty_array_or_an_absent_field") {
  const Json json = describe_one(shapes, Shapes{});
  CHECK(find(json, "list") == nullptr);
  CHECK(find(describe_one(everything_description, full()), "sized[0]") == nullptr);
  CHECK(find(describe_one(everything_description, full()), "sized[1]")->at("type") == "uint64");
}

TEST_CASE("Description.numbers_names_that_occur_more_than_once") {
  const Json json = describe_one(everything_description, full());
  CHECK(find(json, "unused[0]")->at("size") == 3);
  CHECK(find(json, "unused[2]")->at("type") == "unused_buffer");
  CHECK(find(json, "unused") == nullptr);
}

TEST_CASE("Description.describes_elements_one_by_one_when_they_can_differ") {
  const Json json = describe_one(everything_description, full());
  CHECK(find(json, "inners")->at("index") == 0);
  CHECK(find(json, "inners", 1)->at("index") == 1);
  CHECK(find(json, "inners")->at("size") != find(json, "inners", 1)->at("size"));
  RaggedPair object;
  CHECK(find(describe_one(ragged_pair, object), "both")->at("array_len") == 2);
  object.both[1].count = 2;
  Bytes bytes;
  const Json differing = describe_one(ragged_pair, object, &bytes);
  CHECK(find(differing, "both", 1)->at("index") == 1);
  ByteReader in(bytes);
  CHECK(walk(differing, in));
  CHECK(in.at_end());
}

TEST_CASE("Description.of_a_stream_lists_devices_in_order") {
  Everything object = full();
  Pair pair;
  DeviceSet set(4);
  REQUIRE(set.add(everything_description, object).has_value());
  REQUIRE(set.add(pair_description, pair, {"bus/3", {}}).has_value());
  const auto sections = set.save();
  REQUIRE(sections.has_value());
  const std::string text = describe_stream(*sections, 4096);
  CHECK(text.rfind(R"({"page_size": 4096, "devices": [{"name": "everything", "instance_id": 0, "vmsd_name": )", 0) ==
        0);
  const Json json = Json::parse(text);
  REQUIRE(json.at("devices").size() == 2);
  CHECK(json.at("devices")[1].at("name") == "bus/3/pair");
  for (std::size_t i = 0; i < 2; ++i) {
    ByteReader in((*sections)[i].body);
    CHECK(walk(json.at("devices")[i], in));
    CHECK(in.at_end());
  }
}

TEST_CASE("Description.escapes_text") { CHECK(json_string("a\"b\\c\n\x7f") == R"("a\"b\\c\u000a\u007f")"); }

TEST_CASE("Description.is_padded_when_its_length_would_look_like_its_start") {
  CHECK(description_padding(1000) == 0);
  CHECK(description_padding(0x7b) == 1);
  CHECK(description_padding(0x7b00) == 0);  // a zero byte behind the brace hides it
  CHECK(description_padding(0x7b01) == 0x7c00 - 0x7b01);
  CHECK(description_padding(0x17b7b) == 0x17c00 - 0x17b7b);
}

TEST_CASE("Configuration.has_the_wire_form_and_describes_itself") {
  const std::string_view capabilities[] = {"x-ignore-shared"};
  std::array<std::byte, 16> uuid{};
  uuid[15] = std::byte{0xee};
  auto made = make_configuration("pc-i440fx-7.2", std::nullopt, capabilities, std::span<const std::byte, 16>(uuid));
  REQUIRE(made.has_value());
  Layout layout;
  const auto bytes = save_configuration(*made, &layout);
  REQUIRE(bytes.has_value());
  CHECK(to_hex(*bytes) == "0000000d" + to_hex(as_bytes("pc-i440fx-7.2")) + "051a" +
                              to_hex(as_bytes("configuration/capabilities")) + "00000001" + "00000001" + "0f" +
                              to_hex(as_bytes("x-ignore-shared")) + "0512" + to_hex(as_bytes("configuration/uuid")) +
                              "00000001" + std::string(30, '0') + "ee");
  const std::string text = with_configuration(R"({"page_size": 4096, "devices": []})", layout);
  CHECK(text.rfind(R"({"configuration": {"vmsd_name": "configuration", "version": 1, "fields": [)"
                   R"({"name": "len", "type": "uint32", "size": 4}, {"name": "name", "type": "buffer", "size": 13}], )"
                   R"("subsections": [{"vmsd_name": "configuration/capabilities")",
                   0) == 0);
  ByteReader in(*bytes);
  CHECK(walk(Json::parse(text).at("configuration"), in));
  CHECK(in.at_end());
  CHECK(with_configuration(text, layout) == text);
}

TEST_CASE("Configuration.reads_back_what_it_wrote") {
  const std::string_view capabilities[] = {"x-ignore-shared", "mapped-ram"};
  auto made = make_configuration("virt", 16, capabilities, std::nullopt);
  const auto bytes = save_configuration(*made, nullptr);
  ByteReader in(*bytes);
  const auto loaded = load_configuration(in);
  REQUIRE(loaded.has_value());
  CHECK(loaded->machine_name() == "virt");
  CHECK(loaded->page_bits == 16);
  CHECK(loaded->capability_count == 2);
  CHECK(loaded->capabilities[1].view() == "mapped-ram");
  CHECK_FALSE(loaded->has_uuid);
}

TEST_CASE("Configuration.refuses_a_name_that_is_too_long") {
  ByteWriter out;
  out.u32(256).zeros(256);
  ByteReader in(out.view());
  CHECK(load_configuration(in).error().text() == "Failed to load configuration:name: count 256 is outside 0..255");
  CHECK_FALSE(make_configuration(std::string(256, 'x'), {}, {}, {}).has_value());
}
