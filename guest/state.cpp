// SPDX-License-Identifier: Apache-2.0
// The state of a guest's devices, as SAVE returns it and LOAD brings it (docs/formats/guest-protocol.md, "State").
#include "guest/protocol.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <tuple>

namespace migrationd::guest {

namespace {

// Sums over all sections, compared with their bounds before anything is copied.
struct StateTotals {
  std::uint64_t state = 0;
  std::uint64_t description = 0;

  Result<void> add(std::uint64_t body_bytes, std::uint64_t text_bytes_) {
    state += body_bytes;
    description += text_bytes_;
    if (state > limits::device_state_bytes) {
      return Error(ErrorKind::limit, fmt::format("more than {} bytes of device state", limits::device_state_bytes));
    }
    if (description > limits::description_bytes) {
      return Error(ErrorKind::limit, fmt::format("more than {} bytes of description", limits::description_bytes));
    }
    return {};
  }
};

Result<ByteView> counted_bytes(ByteReader& in) {
  MD_TRY(const std::uint32_t length, in.u32());
  return in.bytes(length);
}

Result<StateSection> decode_section(ByteReader& in, StateTotals& totals) {
  StateSection out;
  MD_TRY(const std::uint16_t id_length, in.u16());
  MD_TRY(const ByteView id, in.bytes(id_length));
  if (!is_name(as_text(id))) {
    return wire_error(fmt::format("id '{}' is not 1 to 255 bytes of printable ASCII", printable(as_text(id))));
  }
  out.id = as_text(id);
  const auto within = [&](Error error) { return std::move(error).with(fmt::format("'{}'", out.id)); };
  const auto rest = [&]() -> Result<void> {
    MD_TRY(out.instance, in.u32());
    MD_TRY(out.version, in.u32());
    MD_TRY(const std::uint8_t early, in.u8());
    if (early > 1) return wire_error(fmt::format("early is {}, neither 0 nor 1", early));
    out.early = early == 1;
    MD_TRY(const ByteView body, counted_bytes(in));
    MD_TRY(const ByteView description, counted_bytes(in));
    MD_CHECK(totals.add(body.size(), description.size()));
    const std::string_view text = as_text(description);
    if (!std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; })) {
      return wire_error("its description is not printable ASCII");
    }
    out.body.assign(body.begin(), body.end());
    out.description = text;
    return {};
  };
  if (auto read = rest(); !read) return within(std::move(read).error());
  return out;
}

Result<std::vector<StateSection>> decode_sections(ByteView bytes) {
  ByteReader in(bytes);
  MD_TRY(const std::uint32_t magic, in.u32());
  if (magic != state_magic) return wire_error(fmt::format("magic {} is not that of a state", hex(magic)));
  MD_TRY(const std::uint32_t count, in.u32());
  if (count > limits::sections) {
    return Error(ErrorKind::limit, fmt::format("{} sections are more than {}", count, limits::sections));
  }
  std::vector<StateSection> out;
  std::set<std::tuple<std::string, std::uint32_t>> seen;
  StateTotals totals;
  for (std::uint32_t i = 0; i < count; ++i) {
    auto section = decode_section(in, totals);
    if (!section) return std::move(section).error().with(fmt::format("section {}", i));
    if (!seen.emplace(section->id, section->instance).second) {
      return wire_error(fmt::format("section {}: '{}' {} stands there twice", i, section->id, section->instance));
    }
    out.push_back(*std::move(section));
  }
  if (!in.at_end()) return wire_error(fmt::format("{} bytes too many", in.remaining()));
  return out;
}

}  // namespace

Result<Bytes> encode_state(const std::vector<StateSection>& sections) {
  if (sections.size() > limits::sections) {
    return Error(ErrorKind::limit,
                 fmt::format("state: {} sections are more than {}", sections.size(), limits::sections));
  }
  StateTotals totals;
  for (const StateSection& section : sections) {
    if (auto fits = totals.add(section.body.size(), section.description.size()); !fits) {
      return std::move(fits).error().with(fmt::format("state: '{}'", section.id));
    }
  }
  ByteWriter out;
  out.u32(state_magic).u32(static_cast<std::uint32_t>(sections.size()));
  for (const StateSection& section : sections) {
    out.u16(static_cast<std::uint16_t>(section.id.size())).text(section.id);
    out.u32(section.instance).u32(section.version).u8(section.early ? 1 : 0);
    out.u32(static_cast<std::uint32_t>(section.body.size())).bytes(section.body);
    out.u32(static_cast<std::uint32_t>(section.description.size())).text(section.description);
  }
  return std::move(out).take();
}

Result<std::vector<StateSection>> decode_state(ByteView bytes) {
  auto out = decode_sections(bytes);
  if (!out) return std::move(out).error().with("state");
  return out;
}

}  // namespace migrationd::guest
