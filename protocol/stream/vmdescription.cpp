// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/vmdescription.hpp"

#include "base/limits.hpp"
#include "protocol/stream/description_reader.hpp"

#include <fmt/format.h>

namespace migrationd::stream {

namespace {

// The walk of docs/formats/stream.md: fields in order, then subsections in order.
class Walk {
 public:
  Walk(ByteView bytes, WalkBudget& budget, StateVisitor* visitor) noexcept
      : in_(bytes), budget_(budget), visitor_(visitor) {}

  std::size_t position() const noexcept { return in_.position(); }

  // Depth is bounded by limits::description_nesting: the tree was parsed under it.
  Result<void> state(const StateDescription& state) {
    MD_CHECK(spend());
    if (!state.has_vmsd_name) {
      MD_TRY(const ByteView bytes, take(state.size.value_or(0)));
      if (visitor_ != nullptr) visitor_->opaque(bytes);
      return {};
    }
    for (const DescribedField& field : state.fields) {
      auto walked = this->field(field);
      if (!walked) return std::move(walked).error().with(fmt::format("field '{}'", printable(field.name)));
    }
    for (const StateDescription& sub : state.subsections) {
      auto walked = subsection(sub);
      if (!walked) return std::move(walked).error().with(fmt::format("subsection '{}'", printable(sub.vmsd_name)));
    }
    return {};
  }

 private:
  Result<void> field(const DescribedField& field) {
    MD_CHECK(spend());
    const std::uint64_t count = field.array_len.value_or(1);
    if (!field.structure) {
      std::uint64_t bytes = 0;
      if (__builtin_mul_overflow(field.size, count, &bytes)) return wire_error("its size overflows");
      MD_TRY(const ByteView value, take(bytes));
      if (visitor_ != nullptr) visitor_->value(field, value);
      return {};
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::size_t before = in_.position();
      if (visitor_ != nullptr) visitor_->enter_struct(field);
      MD_CHECK(state(*field.structure));
      if (visitor_ != nullptr) visitor_->leave();
      const std::size_t walked = in_.position() - before;
      if (!field.array_len && walked != field.size) {
        return wire_error(fmt::format("walks {} bytes, its size is {}", walked, field.size));
      }
      if (walked == 0) break;  // the others are as empty
    }
    return {};
  }

  Result<void> subsection(const StateDescription& sub) {
    MD_TRY(const std::uint8_t type, in_.u8());
    MD_TRY(const std::string_view name, in_.str8());
    MD_TRY(const std::uint32_t version, in_.u32());
    if (type != mark::subsection || name != sub.vmsd_name || version != sub.version) {
      return wire_error(
          fmt::format("byte {:#04x}, name '{}', version {} where it is due", type, printable(name), version));
    }
    if (visitor_ != nullptr) visitor_->enter_subsection(sub);
    MD_CHECK(state(sub));
    if (visitor_ != nullptr) visitor_->leave();
    return {};
  }

  Result<ByteView> take(std::uint64_t bytes) {
    if (bytes > in_.remaining()) {
      return wire_error(fmt::format("{} bytes at offset {:#x}, {} are left", bytes, in_.position(), in_.remaining()));
    }
    return in_.bytes(static_cast<std::size_t>(bytes));
  }

  Result<void> spend() {
    if (budget_.steps == 0) {
      return Error(ErrorKind::limit,
                   fmt::format("the description asks for more than {} steps", limits::description_walk_steps));
    }
    --budget_.steps;
    return {};
  }

  ByteReader in_;
  WalkBudget& budget_;
  StateVisitor* visitor_;
};

std::string section_title(const SectionHeader& header) {
  return fmt::format("section '{}' instance {} (id {})", printable(header.name), header.instance_id, header.section_id);
}

// One FULL section at the start of `bytes`; `device` is the entry that describes it.
Result<SectionSpan> analyse_section(const DescribedDevice& device, ByteView bytes, WalkBudget& budget) {
  auto element = decode_element(bytes);
  if (element.failed()) return std::move(element).error();
  SectionFull* full = element.is_ready() ? std::get_if<SectionFull>(&element.value()) : nullptr;
  if (full == nullptr) {
    return wire_error(fmt::format("no section begins where '{}' is due", printable(device.name)));
  }
  SectionSpan span;
  span.header = std::move(full->header);
  span.body_offset = element.consumed();
  if (span.header.name != device.name || span.header.instance_id != device.instance_id) {
    return wire_error(fmt::format("{} stands where '{}' instance {} is due", section_title(span.header),
                                  printable(device.name), device.instance_id));
  }
  const auto title = section_title(span.header);
  auto length = walk_state(device.state, bytes.subspan(span.body_offset), budget);
  if (!length) return std::move(length).error().with(title);
  span.body_length = *length;
  auto footer =
      decode_footer(bytes.subspan(span.body_offset + span.body_length), span.header.section_id, span.header.name);
  if (footer.failed()) return std::move(footer).error().with(title);
  if (footer.needs_more()) return wire_error("its footer is cut off").with(title);
  return span;
}

Result<void> check_early(const DescribedDevice& device, const DeviceSection& early, WalkBudget& budget) {
  const std::string title = fmt::format("early section '{}'", printable(early.name));
  if (device.name != early.name || device.instance_id != early.instance_id) {
    return wire_error(fmt::format("the description has '{}' in its place", printable(device.name))).with(title);
  }
  auto length = walk_state(device.state, early.body, budget);
  if (!length) return std::move(length).error().with(title);
  if (*length != early.body.size()) {
    return wire_error(fmt::format("{} bytes came, {} are described", early.body.size(), *length)).with(title);
  }
  return {};
}

}  // namespace

Result<VmDescription> parse_description(std::string_view text) {
  if (text.size() > limits::description_bytes) {
    return Error(ErrorKind::limit,
                 fmt::format("description: {} bytes, at most {} are taken", text.size(), limits::description_bytes));
  }
  VmDescription out;
  DescriptionReader reader(out);
  const auto stopped_at = scan_json(text, reader);
  if (!reader.problem().empty()) return wire_error(fmt::format("description: {}", reader.problem()));
  if (stopped_at) return wire_error(fmt::format("description: not JSON from byte {} on", *stopped_at));
  if (!reader.saw_devices()) return wire_error("description: it lists no devices");
  return out;
}

Result<std::size_t> walk_state(const StateDescription& state, ByteView bytes, WalkBudget& budget,
                               StateVisitor* visitor) {
  Walk walk(bytes, budget, visitor);
  MD_CHECK(walk.state(state));
  return walk.position();
}

Result<std::vector<SectionSpan>> analyse(const VmDescription& description, ByteView device_bytes,
                                         std::span<const DeviceSection> early, WalkBudget& budget) {
  if (description.devices.size() < early.size()) return wire_error("description: the early sections are missing");
  for (std::size_t i = 0; i < early.size(); ++i) MD_CHECK(check_early(description.devices[i], early[i], budget));
  std::vector<SectionSpan> sections;
  std::size_t at = 0;
  for (std::size_t i = early.size(); i < description.devices.size(); ++i) {
    MD_TRY(SectionSpan span, analyse_section(description.devices[i], device_bytes.subspan(at), budget));
    span.body_offset += at;
    at = span.body_offset + span.body_length + footer_bytes;
    sections.push_back(std::move(span));
  }
  if (at != device_bytes.size()) {
    return wire_error(fmt::format("{} bytes of device state are not described", device_bytes.size() - at));
  }
  return sections;
}

DeviceSection take_section(SectionSpan& span, ByteView bytes) {
  const ByteView body = bytes.subspan(span.body_offset, span.body_length);
  DeviceSection section;
  section.section_id = span.header.section_id;
  section.name = std::move(span.header.name);
  section.instance_id = span.header.instance_id;
  section.version_id = span.header.version_id;
  section.body.assign(body.begin(), body.end());
  return section;
}

}  // namespace migrationd::stream
