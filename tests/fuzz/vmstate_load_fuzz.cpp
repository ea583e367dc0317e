// SPDX-License-Identifier: Apache-2.0
//
// Loads any bytes into a device that uses every construct of a table. What loads must save again, and the saved
// bytes must load into an equal object: the engine's two loops cannot disagree about an object they accepted.
//
// The first byte chooses the version loaded; the same bytes go into a device of every shape, and into one of a table
// made from it as a seed. Then a second device set finds its device by a name from the bytes.
#include "tests/unit/vmstate/every_shape.hpp"
#include "tests/unit/vmstate/generated.hpp"
#include "vmstate/configuration.hpp"
#include "vmstate/device_set.hpp"

#include <cstdlib>

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;

namespace {

void require(bool fact) {
  if (!fact) std::abort();
}

void load_everything(ByteView bytes, std::uint32_t version) {
  Everything object;
  ByteReader in(bytes);
  if (!load(everything_description, object, version, in)) return;
  ByteWriter out;
  Layout layout;
  require(save(everything_description, object, out, &layout).has_value());
  require(!json_members(layout).empty());
  Everything again;
  ByteReader second(out.view());
  require(load(everything_description, again, everything_description.version, second).has_value());
  require(second.at_end());
  // Not whole objects: elements past a count stay as the object had them, here as in any reader.
  ByteWriter third;
  require(save(everything_description, again, third).has_value());
  require(third.size() == out.size() && std::memcmp(third.view().data(), out.view().data(), out.size()) == 0);
}

// The slots that are null are the same on both sides.
void prepare(Shapes& object) {
  object.pair_slots[1] = std::make_unique<Pair>();
  object.budget = 0x7fffffff;
}

void load_shapes(ByteView bytes, std::uint32_t version) {
  Shapes object;
  prepare(object);
  ByteReader in(bytes);
  if (!load(shapes_description, object, version, in)) return;
  require(object.laps.size() <= Shapes::most_laps && object.notes.size() <= Shapes::most_notes);
  require(object.mappings.size() <= Shapes::most_mappings && object.map.size() * 64 < Shapes::most_bits + 64);
  ByteWriter out;
  Layout layout;
  require(save(shapes_description, object, out, &layout).has_value());
  require(!json_members(layout).empty());
  Shapes again;
  prepare(again);
  ByteReader second(out.view());
  require(load(shapes_description, again, shapes_description.version, second).has_value());
  require(second.at_end());
}

// Tables are made once: that takes longer than an execution.
const Description& generated_table(std::size_t seed) {
  static std::array<std::unique_ptr<TableMaker>, 256> makers;
  static std::array<const Description*, 256> tables{};
  if (tables[seed] == nullptr) {
    makers[seed] = std::make_unique<TableMaker>(seed);
    tables[seed] = &makers[seed]->make();
  }
  return *tables[seed];
}

void load_generated(ByteView bytes, std::size_t seed) {
  const Description& table = generated_table(seed);
  GeneratedObject object(table);
  ByteReader in(bytes);
  if (!load_state(table, object.address(), table.version, in)) return;
  ByteWriter out;
  require(save_state(table, object.address(), out, nullptr).has_value());
  GeneratedObject again(table);
  again.agree_with(object);
  ByteReader second(out.view());
  require(load_state(table, again.address(), table.version, second).has_value());
  ByteWriter third;
  require(save_state(table, again.address(), third, nullptr).has_value());
  require(third.size() == out.size() && std::memcmp(third.view().data(), out.view().data(), out.size()) == 0);
}

void load_set(ByteView bytes) {
  Everything object;
  Pair pair;
  DeviceSet set;
  require(set.add(everything_description, object).has_value());
  require(set.add(pair_description, pair, {"bus/1", {}}).has_value());
  LoadPass pass(set);
  ByteReader in(bytes);
  while (!in.at_end()) {
    const auto name = in.str8();
    const auto instance = in.u8();
    const auto version = in.u8();
    if (!name || !instance || !version || !pass.load(*name, *instance, *version, in)) return;
  }
  require(pass.missing().size() <= 2);
}

void load_config(ByteView bytes) {
  ByteReader in(bytes);
  auto loaded = load_configuration(in);
  if (!loaded) return;
  require(loaded->machine_name().size() <= 255);
  Layout layout;
  require(save_configuration(*loaded, &layout).has_value());
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ByteView bytes = std::as_bytes(std::span(data, size));
  if (bytes.empty()) return 0;
  load_everything(bytes.subspan(1), std::to_integer<std::uint32_t>(bytes[0]));
  load_shapes(bytes.subspan(1), std::to_integer<std::uint32_t>(bytes[0]));
  load_generated(bytes.subspan(1), std::to_integer<std::size_t>(bytes[0]));
  load_set(bytes);
  load_config(bytes);
  return 0;
}
