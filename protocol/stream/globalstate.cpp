// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/globalstate.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::stream {

namespace {

Error globalstate_error(std::string_view what) { return wire_error(fmt::format("globalstate: {}", what)); }

// Bytes 32 and 33 of the field are 10.0's flags; a longer name could only come from something that has none.
constexpr std::size_t name_area_bytes = run_state_bytes_max + 1;

}  // namespace

Result<std::string> read_run_state(ByteView body) {
  if (body.size() != globalstate_bytes) {
    return globalstate_error(fmt::format("{} bytes, {} are due", body.size(), globalstate_bytes));
  }
  const auto size = load_be<std::uint32_t>(body.data());
  const std::string_view field = as_text(body.subspan(4));
  const std::size_t length = std::min(field.find('\0'), field.size());
  if (length == 0) return globalstate_error("the run state is empty");
  if (length > run_state_bytes_max) return globalstate_error("the run state is not terminated");
  // The size counts the NUL.
  if (size != length + 1) return globalstate_error(fmt::format("size {} for a run state of {} bytes", size, length));
  return std::string(field.substr(0, length));
}

Result<Bytes> with_run_state(ByteView body, std::string_view name) {
  MD_TRY(const std::string old, read_run_state(body));
  if (name.empty() || name.size() > run_state_bytes_max || name.find('\0') != std::string_view::npos) {
    return machine_error(fmt::format("run state \"{}\" cannot be written", printable(name)));
  }
  Bytes out(body.begin(), body.end());
  store_be(out.data(), static_cast<std::uint32_t>(name.size() + 1));
  const auto field = std::span(out).subspan(4, name_area_bytes);
  std::fill(field.begin(), field.end(), std::byte{0});
  std::copy(as_bytes(name).begin(), as_bytes(name).end(), field.begin());
  return out;
}

Result<Bytes> make_globalstate(std::string_view name) {
  ByteWriter blank;
  blank.u32(2).text("x").zeros(globalstate_field_bytes - 1);
  return with_run_state(blank.view(), name);
}

}  // namespace migrationd::stream
