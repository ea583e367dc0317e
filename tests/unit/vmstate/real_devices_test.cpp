// SPDX-License-Identifier: Apache-2.0
//
// Every device section of whole recorded machines (pc, q35 and none of QEMU 7.2 and 10.0), decoded by this library: the
// description that ends the stream becomes tables at run time, the sections are loaded by them, saved again, and
// described again.
#include "protocol/stream/layout.hpp"
#include "protocol/stream/vmdescription.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/protocol/stream_fixture.hpp"
#include "vmstate/device_set.hpp"
#include "vmstate/engine.hpp"
#include "vmstate/runtime.hpp"

#include <deque>
#include <map>

using namespace migrationd;
using namespace migrationd::vmstate;

namespace {

// Tables out of a stream's description. An object of one is plain memory.
class DescribedTables {
 public:
  const Description& table(const stream::StateDescription& state) {
    Description& out = tables_.emplace_back();
    out.owner = next_owner_++;
    std::size_t used = 0;
    fill(out, state, used);
    settle(out, used);
    return out;
  }

 private:
  void fill(Description& out, const stream::StateDescription& state, std::size_t& used) {
    out.name = state.vmsd_name;
    out.version = state.version;
    auto& rows = rows_.emplace_back();
    for (const auto& field : state.fields) rows.push_back(row(field, out.owner, used));
    out.rows = rows;
    auto& parts = parts_.emplace_back();
    for (const auto& part : state.subsections) {
      Description& table = tables_.emplace_back();
      table.owner = out.owner;
      fill(table, part, used);
      parts.push_back(&table);
    }
    out.parts = parts;
  }

  static void settle(Description& table, std::size_t bytes) {
    table.object_bytes = std::max<std::size_t>(bytes, 1);
    for (const Description* part : table.parts) settle(const_cast<Description&>(*part), bytes);
  }

  Field row(const stream::DescribedField& field, std::uint64_t owner, std::size_t& used) {
    static const std::map<std::string, const Codec*> codecs = {
        {"bool", &codec::boolean}, {"int8", &codec::i8},      {"int16", &codec::i16},
        {"int32", &codec::i32},    {"int64", &codec::i64},    {"uint8", &codec::u8},
        {"uint16", &codec::u16},   {"uint32", &codec::u32},   {"uint64", &codec::u64},
        {"timer", &codec::timer},  {"int32 le", &codec::u32}, {"CPU_Double_U", &codec::binary64}};
    const auto elements = static_cast<std::uint32_t>(field.array_len.value_or(1));
    const auto known = codecs.find(field.type);
    Field out{};
    if (field.structure) {
      const Description& child = table(*field.structure);
      out = structure_at(field.name, owner, child, used, child.object_bytes, elements);
    } else if (known != codecs.end()) {
      out = field_at(field.name, owner, *known->second, used, elements);
    } else {
      out = buffer_at(field.name, owner, used, static_cast<std::uint32_t>(field.size));
      out.capacity = elements;
    }
    out.shared_name = true;  // an array that is not compressed has its name once per element
    used += out.stride * elements;
    return out;
  }

  std::uint64_t next_owner_ = 1;
  std::deque<Description> tables_;
  std::deque<std::vector<Field>> rows_;
  std::deque<std::vector<const Description*>> parts_;
};

struct Machine {
  stream::VmDescription description;
  Bytes bytes;  // device sections, up to the end byte
};

Machine recorded(const std::string& name) {
  const Bytes tail = migrationd::test::fixture(name);
  for (std::size_t at = tail.size() - 5; at > 0; --at) {
    if (tail[at] != std::byte{stream::mark::description}) continue;
    if (load_be<std::uint32_t>(tail.data() + at + 1) != tail.size() - at - 5) continue;
    auto description = stream::parse_description(as_text(ByteView(tail).subspan(at + 5)));
    REQUIRE(description.has_value());
    REQUIRE(tail[at - 1] == std::byte{stream::mark::eof});
    return {std::move(*description), Bytes(tail.begin(), tail.begin() + static_cast<std::ptrdiff_t>(at) - 1)};
  }
  FAIL("no description in " << name);
  return {};
}

std::uint64_t described_bytes(const Layout& layout) {
  std::uint64_t sum = 0;
  for (const FieldLayout& field : layout.fields) sum += field.size * std::max<std::uint32_t>(1, field.array_length);
  for (const Layout& part : layout.subsections) sum += 2 + part.name.size() + 4 + described_bytes(part);
  return sum;
}

// A device without a table (slirp): as many bytes as its description says.
void check_legacy(const stream::DescribedDevice& device, const stream::SectionSpan& span, ByteView body) {
  Bytes state;
  LegacyHandlers handlers;
  handlers.version = span.header.version_id;
  handlers.save = [&](ByteWriter& out) -> Result<void> {
    out.bytes(state);
    return {};
  };
  handlers.load = [&](ByteReader& in, std::uint32_t /*version*/) -> Result<void> {
    MD_TRY(const ByteView bytes, in.bytes(*device.state.size));
    state.assign(bytes.begin(), bytes.end());
    return {};
  };
  DeviceSet set;
  REQUIRE(set.add_legacy(device.name, handlers, device.instance_id).has_value());
  LoadPass pass(set);
  REQUIRE(pass.load({span.header.name, span.header.instance_id, span.header.version_id, body}).has_value());
  const auto saved = set.save();
  REQUIRE(saved.has_value());
  const bool same = saved->front().body == Bytes(body.begin(), body.end());
  CHECK(same);
}

void check_device(const stream::DescribedDevice& device, const stream::SectionSpan& span, const Machine& machine) {
  INFO(device.name);
  const ByteView body = ByteView(machine.bytes).subspan(span.body_offset, span.body_length);
  if (!device.state.has_vmsd_name) return check_legacy(device, span, body);
  DescribedTables tables;
  const Description& table = tables.table(device.state);
  REQUIRE(fault_name(check_now(table)) == "none");
  std::vector<std::uint64_t> object(table.object_bytes / 8 + 1);
  ByteReader in(body);
  const auto loaded = load_state(table, object.data(), span.header.version_id, in);
  INFO((loaded ? std::string() : loaded.error().text()));
  REQUIRE(loaded.has_value());
  CHECK(in.at_end());
  ByteWriter out;
  Layout layout;
  REQUIRE(save_state(table, object.data(), out, &layout).has_value());
  const bool same = out.size() == body.size() && std::equal(body.begin(), body.end(), out.view().begin());
  CHECK(same);
  CHECK(described_bytes(layout) == body.size());
}

std::size_t check_machine(const std::string& name) {
  INFO(name);
  const Machine machine = recorded(name);
  stream::WalkBudget budget{1 << 24};
  const auto spans = stream::analyse(machine.description, machine.bytes, {}, budget);
  INFO((spans ? std::string() : spans.error().text()));
  REQUIRE(spans.has_value());
  REQUIRE(spans->size() == machine.description.devices.size());
  for (std::size_t i = 0; i < spans->size(); ++i) check_device(machine.description.devices[i], (*spans)[i], machine);
  return spans->size();
}

}  // namespace

TEST_CASE("RealDevices.of_qemu_7_2_are_decoded_to_the_last_byte") {
  CHECK(check_machine("devices-7.2-pc.tail.gz") >= 30);
  CHECK(check_machine("devices-7.2-q35.tail.gz") >= 30);
  CHECK(check_machine("devices-7.2-none.tail.gz") >= 2);
}

TEST_CASE("RealDevices.of_qemu_10_0_are_decoded_to_the_last_byte") {
  CHECK(check_machine("devices-10.0-pc.tail.gz") >= 30);
  CHECK(check_machine("devices-10.0-q35.tail.gz") >= 30);
  CHECK(check_machine("devices-10.0-none.tail.gz") >= 2);
}
