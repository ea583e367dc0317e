// SPDX-License-Identifier: Apache-2.0
// Tables as a C program may write them, wrong ones too, made from the input. One that is taken has proved that all its
// fields lie in the state: it saves a state of exactly that size, and loads what it saved, without a step outside.
//
// State and copy begin alike, so that loading changes nothing, even where two fields share bytes.
#include "base/bytes.hpp"
#include "guest/tables.hpp"
#include "vmstate/engine.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace migrationd;
using namespace migrationd::guest;

namespace {

constexpr std::size_t devices = 4;
constexpr std::size_t most_fields = 8;
constexpr std::array<const char*, 8> names{"a", "b", "c", "a/x", "a/y", "a/x/z", "", nullptr};

class Input {
 public:
  explicit Input(ByteView bytes) noexcept : bytes_(bytes) {}
  // Zeros behind the end.
  unsigned byte() noexcept {
    if (bytes_.empty()) return 0;
    const auto first = std::to_integer<unsigned>(bytes_.front());
    bytes_ = bytes_.subspan(1);
    return first;
  }
  std::size_t number() noexcept {
    const unsigned first = byte();
    if (first < 0xf0) return first;
    std::size_t wide = 0;
    for (unsigned i = 0; i < first % 8; ++i) wide = wide << 8U | byte();
    return first == 0xff ? ~std::size_t{0} : wide;
  }
  const char* name() noexcept { return names.at(byte() % names.size()); }

 private:
  ByteView bytes_;
};

int accept(void*) { return 0; }
int accept_version(void*, std::uint32_t) { return 0; }

struct Program {
  std::array<md_device, devices> device{};
  std::array<std::array<md_field, most_fields + 1>, devices> fields{};
  std::array<std::array<const md_device*, 3>, devices> parts{};
  bool has_bools = false;
};

// A field of its type's own size unless the input says otherwise; unused bytes are written, so they are bounded.
std::size_t size_of(md_type type, Input& in) {
  constexpr std::array<std::uint8_t, 11> sizes{0, 1, 1, 2, 4, 8, 1, 2, 4, 8, 8};
  const std::size_t odd = in.number();
  if (type == MD_TYPE_UNUSED) return odd & 0xffU;
  const auto index = static_cast<std::size_t>(type);
  return odd == 0 && index < sizes.size() ? sizes.at(index) : odd;
}

md_field field_from(Input& in, Program& program) {
  md_field field{};
  field.name = in.name();
  const unsigned type = in.byte();
  field.type = type == 0xff ? MD_TYPE_LAST : static_cast<md_type>(1 + type % MD_TYPE_UNUSED);
  field.version = in.byte() % 4;
  field.offset = in.number();
  field.size = size_of(field.type, in);
  field.count = 1;
  const unsigned shape = in.byte();
  if ((shape & 1U) != 0) {
    field.count = static_cast<std::uint32_t>(in.number());
    if (field.type == MD_TYPE_UNUSED) field.count &= 0xffU;
  }
  if ((shape & 2U) != 0) {
    field.counted = 1;
    field.count_offset = in.number();
    field.count_type = static_cast<md_type>(in.byte() % MD_TYPE_UNUSED);
  }
  if ((shape & 4U) != 0) field.nested = &program.device.at(in.byte() % devices);
  program.has_bools = program.has_bools || field.type == MD_TYPE_BOOL;
  return field;
}

void fill(Program& program, std::size_t index, Input& in) {
  md_device& device = program.device.at(index);
  device.name = in.name();
  device.version = in.byte() % 4;
  device.minimum_version = in.byte() % 4;
  device.state_size = in.number();
  auto& fields = program.fields.at(index);
  const std::size_t count = in.byte() % (most_fields + 1);
  for (std::size_t i = 0; i < count; ++i) fields.at(i) = field_from(in, program);
  device.fields = fields.data();
  auto& parts = program.parts.at(index);
  const unsigned options = in.byte();
  for (std::size_t i = 0; i < (options & 3U) % parts.size(); ++i) parts.at(i) = &program.device.at(in.byte() % devices);
  if ((options & 4U) != 0) device.subsections = parts.data();
  if ((options & 8U) != 0) device.pre_save = device.post_save = &accept;
  if ((options & 16U) != 0) device.pre_load = device.post_load = &accept_version;
  device.early = (options & 32U) != 0 ? 1 : 0;
  device.unmigratable = (options & 64U) != 0 ? 1 : 0;
}

void save_and_load(const Table& table, const Program& program, Input& in) {
  // Exactly as large as was said, so that AddressSanitizer sees one byte more.
  std::vector<std::byte> state(program.device[0].state_size);
  std::generate(state.begin(), state.end(),
                [&] { return static_cast<std::byte>(program.has_bools ? in.byte() & 1U : in.byte()); });
  const std::vector<std::byte> before = state;
  std::vector<std::byte> copy = state;
  ByteWriter out;
  vmstate::Layout layout;
  if (!vmstate::save_state(table, state.data(), out, &layout)) return;
  if (state != before) std::abort();
  if (table.minimum_version > table.version) return;
  ByteReader saved(out.view());
  if (auto loaded = vmstate::load_state(table, copy.data(), table.version, saved); !loaded) {
    std::fprintf(stderr, "what was saved does not load: %s\n", loaded.error().text().c_str());
    std::abort();
  }
  if (copy != before) std::abort();
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(std::as_bytes(std::span(data, size)));
  Program program;
  for (std::size_t i = 0; i < devices; ++i) fill(program, i, in);
  // Without it nothing can be proved; 4096 bytes keep an execution short.
  std::size_t& state_size = program.device[0].state_size;
  state_size = 1 + state_size % 4096;
  Words words;
  Tables tables(words);
  const auto table = tables.translate(program.device[0]);
  if (table.has_value()) save_and_load(**table, program, in);
  return 0;
}
