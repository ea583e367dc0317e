// SPDX-License-Identifier: Apache-2.0
//
// The JSON description that ends a stream: parsed into a typed tree, and walked over device bytes.
//
// A FULL section has no length; only this text says how many bytes each one has. The text is the peer's: up to
// 64 MiB, nested and repeated at will. parse_description() bounds size, nesting and the number of nodes and
// keeps nothing of what it does not know; a walk spends from a WalkBudget, so that an `array_len` of 2^60 cannot
// keep us busy.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/sections.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::stream {

struct StateDescription;

struct DescribedField {
  std::string name;
  std::string type;                        // "uint32", "buffer", ...: for people; at most 24 bytes of it
  std::uint64_t size = 0;                  // bytes of one element, nested subsections included
  std::optional<std::uint64_t> array_len;  // elements of this shape; nothing: one
  // For type "struct" with a nested description; any other type is `size` opaque bytes.
  std::unique_ptr<StateDescription> structure;
};

struct StateDescription {
  std::string vmsd_name;
  bool has_vmsd_name = false;         // false: old style, `size` opaque bytes
  std::optional<std::uint64_t> size;  // old style only
  std::uint32_t version = 0;
  std::vector<DescribedField> fields;
  std::vector<StateDescription> subsections;
};

struct DescribedDevice {
  std::string name;
  std::uint32_t instance_id = 0;
  StateDescription state;
};

struct VmDescription {
  std::uint64_t page_size = 0;  // 0 when the text does not say
  std::vector<DescribedDevice> devices;
};

// Steps (fields, elements, sections) the walks of one stream may take together.
struct WalkBudget {
  std::uint64_t steps;
};

// Refuses what is not JSON, has no `devices`, or passes a bound.
Result<VmDescription> parse_description(std::string_view text);

// Told of what a walk meets, in the order of the bytes. Also when the walk fails later on.
class StateVisitor {
 public:
  virtual ~StateVisitor() = default;
  // One element of a struct, or a subsection; what follows until leave() belongs to it.
  virtual void enter_struct(const DescribedField& field) = 0;
  virtual void enter_subsection(const StateDescription& subsection) = 0;
  virtual void leave() = 0;
  // A field that is no struct: all of its elements together, each of field.size bytes.
  virtual void value(const DescribedField& field, ByteView bytes) = 0;
  // The whole of a device of which no fields are described.
  virtual void opaque(ByteView bytes) = 0;
};

// Length of the state that `state` describes at the start of `bytes`; an error when it does not fit.
Result<std::size_t> walk_state(const StateDescription& state, ByteView bytes, WalkBudget& budget,
                               StateVisitor* visitor = nullptr);

// Where one section lies within the device bytes.
struct SectionSpan {
  SectionHeader header;
  std::size_t body_offset = 0;
  std::size_t body_length = 0;
};
// The section itself, its body copied out of the bytes that the span was found in. Takes the name from the span.
DeviceSection take_section(SectionSpan& span, ByteView bytes);

// Splits `device_bytes` (from the first FULL section's 04 byte to before EOF) and proves that the description
// accounts for every byte. `early` are the FULL sections that came before: their entries lead the list, and their
// bodies are walked too.
Result<std::vector<SectionSpan>> analyse(const VmDescription& description, ByteView device_bytes,
                                         std::span<const DeviceSection> early, WalkBudget& budget);

}  // namespace migrationd::stream
