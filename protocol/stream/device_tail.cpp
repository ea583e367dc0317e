// SPDX-License-Identifier: Apache-2.0
//
// How the end is found.
//
// Device sections have no length, and with a return path the source does not close: it waits for us to say that all
// is there. What follows the sections is  00  06 <u32 L>  and L bytes of JSON, and nothing more. So:
//
// 1. A *candidate* is a place 00 06 <L> right behind a footer's bytes (7e and any id), with L below the bound.
// 2. JSON holds no zero byte. A candidate whose text has one is dropped at once. Since every candidate begins
//    with a zero byte, it drops all that began before it (but for the few bytes of a length field): at most a few
//    are alive at any time, and the texts ever looked at hardly overlap. So the work is linear, however many
//    false candidates the bytes hold.
// 3. Nothing follows the description. A candidate is tried only if its text ends where the buffer ends, at the end
//    of a feed(): then the text is parsed, and the description is walked over the sections. It must account for
//    every byte (TailProof::description). Bytes that come later take the answer back.
// 4. A description whose list fits but whose sizes do not (QEMU misdescribes some arrays of pointers) is helped out
//    by the footer scan with that list (TailProof::names).
// 5. A text that is no description at all, an empty one for example, is a dummy: QEMU takes anything there. The
//    footer scan alone must find a chain of sections up to the 00 (TailProof::footers).
// 6. Without any of this (suppress-vmdesc) the end is a 00 as last byte and a chain of sections up to it, when the
//    connection has closed, or was quiet for long enough and `globalstate` was among them.
//
// A guest can write bytes of its choice into some device's state, so it can place candidates, and with knowledge
// of its own layout even a description that accounts for all before it. Rule 3 makes that fail unless a read
// happens to end there; what such a guest gains is the loss of its own machine.
#include "protocol/stream/device_tail.hpp"

#include "base/limits.hpp"
#include "protocol/stream/globalstate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

namespace migrationd::stream {

namespace {

constexpr std::size_t candidate_header_bytes = 1 + description_header_bytes;  // 00 06 <L>
constexpr std::size_t buffer_max = limits::device_state_bytes + limits::description_bytes;

bool is_limit(const Error& error) { return error.kind() == ErrorKind::limit; }

}  // namespace

DeviceTail::DeviceTail(std::uint32_t ram_section_id, std::vector<DeviceSection> early)
    : ram_section_id_(ram_section_id),
      early_(std::move(early)),
      walk_{limits::description_walk_steps},
      scan_{limits::footer_scan_bytes} {
  for (DeviceSection& section : early_) section.early = true;
}

Result<TailProgress> DeviceTail::feed(ByteView bytes) {
  if (bytes.empty()) return progress();
  if (bytes.size() > buffer_max - buffer_.size()) {
    return Error(ErrorKind::limit, fmt::format("device state: no end within {} bytes", buffer_max));
  }
  if (found_) reject(fmt::format("bytes follow the description that ends at offset {:#x}", buffer_.size()));
  found_.reset();
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  MD_CHECK(check_start());
  find_candidates();
  MD_CHECK(settle_candidates());
  return progress();
}

// What follows END ram is a FULL section, or the end; a SWITCHOVER_START may come first.
Result<void> DeviceTail::check_start() {
  while (!started_ && start_ < buffer_.size()) {
    const auto type = static_cast<std::uint8_t>(buffer_[start_]);
    if (type == mark::section_full || type == mark::eof) {
      started_ = true;
    } else if (type == mark::command && start_ == 0) {
      auto command = decode_command(buffer_);
      if (command.failed()) return std::move(command).error().with("device state");
      if (command.needs_more()) return {};
      if (!std::holds_alternative<command::SwitchoverStart>(command.value())) {
        return wire_error(fmt::format("device state: command {} in its place", command_name(command.value())));
      }
      start_ = command.consumed();
    } else {
      return wire_error(fmt::format("device state: element of type {:#04x} in its place", type));
    }
  }
  searched_ = std::max(searched_, start_);
  return {};
}

// Looks at every byte once: for an 06 behind a 00, whose length field is there.
void DeviceTail::find_candidates() {
  if (!started_) return;
  while (searched_ < buffer_.size()) {
    const void* hit = std::memchr(buffer_.data() + searched_, mark::description, buffer_.size() - searched_);
    if (hit == nullptr) {
      searched_ = buffer_.size();
      return;
    }
    const auto at = static_cast<std::size_t>(static_cast<const std::byte*>(hit) - buffer_.data());
    searched_ = at;
    if (at > start_ && buffer_[at - 1] == std::byte{mark::eof}) {
      if (buffer_.size() - at < description_header_bytes) return;  // its length comes with the next bytes
      note_candidate(at - 1);
    }
    searched_ = at + 1;
  }
}

void DeviceTail::note_candidate(std::size_t eof) {
  const bool behind_footer =
      eof == start_ || (eof - start_ >= footer_bytes && buffer_[eof - footer_bytes] == std::byte{mark::footer});
  const auto length = load_be<std::uint32_t>(buffer_.data() + eof + 2);
  if (!behind_footer || length > limits::description_bytes) return;
  const std::size_t text = eof + candidate_header_bytes;
  Candidate candidate{eof, text + length, text};
  if (text_goes_on(candidate)) candidates_.push_back(candidate);
}

// False when a zero byte shows that this is no text.
bool DeviceTail::text_goes_on(Candidate& candidate) const noexcept {
  const std::size_t end = std::min(candidate.end, buffer_.size());
  if (std::memchr(buffer_.data() + candidate.checked, 0, end - candidate.checked) != nullptr) return false;
  candidate.checked = end;
  return true;
}

Result<void> DeviceTail::settle_candidates() {
  const auto dropped = [this](Candidate& candidate) {
    if (!text_goes_on(candidate)) return true;
    if (candidate.end >= buffer_.size()) return false;
    reject(fmt::format("bytes follow the description that ends at offset {:#x}", candidate.end));
    return true;
  };
  std::erase_if(candidates_, dropped);
  for (const Candidate& candidate : candidates_) {
    if (candidate.end == buffer_.size() && !found_) MD_CHECK(try_candidate(candidate));
  }
  return {};
}

Result<void> DeviceTail::try_candidate(const Candidate& candidate) {
  const std::size_t text_at = candidate.eof + candidate_header_bytes;
  const std::string_view text = as_text(ByteView(buffer_).subspan(text_at, candidate.end - text_at));
  // Cheap, and keeps the parser away from most of what is not meant as a description.
  if (text.starts_with('{')) {
    const auto description = parse_description(text);
    if (description && description->devices.size() > early_.size()) return try_description(candidate, *description);
    if (!description) reject(description.error().text());
    if (description && candidate.eof == start_) return try_description(candidate, *description);
  }
  return try_footers(candidate.eof, std::string(text), Globalstate::preferred);
}

Result<void> DeviceTail::try_description(const Candidate& candidate, const VmDescription& description) {
  const std::size_t text_at = candidate.eof + candidate_header_bytes;
  auto sections = analyse(description, sections_before(candidate.eof), early_, walk_);
  if (sections) {
    if (auto unique = check_ids(*sections); !unique) sections = std::move(unique).error();
  }
  if (!sections && is_limit(sections.error())) return std::move(sections).error().with("device state");
  if (!sections) {
    reject(fmt::format("the description does not fit the device state: {}", sections.error().text()));
    stuck_at_ = buffer_.size();
    return try_names(candidate, description);
  }
  found_ =
      Found{std::move(*sections), std::string(as_text(ByteView(buffer_).subspan(text_at, candidate.end - text_at))),
            TailProof::description};
  return {};
}

// An id names one section of the stream.
Result<void> DeviceTail::check_ids(const std::vector<SectionSpan>& sections) const {
  std::set<std::uint32_t> ids{ram_section_id_};
  for (const DeviceSection& section : early_) ids.insert(section.section_id);
  for (const SectionSpan& section : sections) {
    if (ids.insert(section.header.section_id).second) continue;
    return wire_error(fmt::format("section '{}' has the id {} of another section", printable(section.header.name),
                                  section.header.section_id));
  }
  return {};
}

Result<void> DeviceTail::try_names(const Candidate& candidate, const VmDescription& description) {
  std::vector<ExpectedSection> expected;
  for (std::size_t i = 0; i < description.devices.size(); ++i) {
    const DescribedDevice& device = description.devices[i];
    if (i >= early_.size()) {
      expected.push_back({device.name, device.instance_id});
    } else if (device.name != early_[i].name || device.instance_id != early_[i].instance_id) {
      return {};
    }
  }
  auto sections = scan(candidate.eof, &expected);
  if (!sections) return is_limit(sections.error()) ? Result<void>(std::move(sections).error()) : Result<void>();
  const std::size_t text_at = candidate.eof + candidate_header_bytes;
  found_ = Found{std::move(*sections),
                 std::string(as_text(ByteView(buffer_).subspan(text_at, candidate.end - text_at))), TailProof::names};
  return {};
}

// Every machine since 2.4 has a globalstate section, so a chain with it is believed before one without.
Result<void> DeviceTail::try_footers(std::size_t eof, std::optional<std::string> description, Globalstate globalstate) {
  auto sections = scan(eof, nullptr, globalstate_name);
  if (!sections && !is_limit(sections.error()) && globalstate == Globalstate::preferred) sections = scan(eof, nullptr);
  if (!sections && is_limit(sections.error())) return std::move(sections).error();
  if (!sections) {
    reject(sections.error().text());
    return {};
  }
  found_ = Found{std::move(*sections), std::move(description), TailProof::footers};
  return {};
}

Result<std::vector<SectionSpan>> DeviceTail::scan(std::size_t eof, const std::vector<ExpectedSection>* expected,
                                                  std::string_view required_name) {
  ScanRules rules;
  rules.ram_section_id = ram_section_id_;
  for (const DeviceSection& section : early_) rules.used_ids.push_back(section.section_id);
  rules.expected = expected;
  rules.required_name = required_name;
  auto sections = scan_sections(sections_before(eof), rules, scan_);
  if (!sections) return std::move(sections).error().with("device state");
  return sections;
}

Result<TailProgress> DeviceTail::closed() {
  if (found_) return progress();
  if (!started_ || buffer_.back() != std::byte{mark::eof}) {
    const std::string reason = rejected_.empty() ? "" : fmt::format(" ({})", rejected_);
    return wire_error(
        fmt::format("device state: the stream ends after {} bytes without an end mark{}", buffer_.size(), reason));
  }
  MD_CHECK(try_footers(buffer_.size() - 1, std::nullopt, Globalstate::preferred));
  if (!found_) return wire_error(rejected_);
  return progress();
}

Result<TailProgress> DeviceTail::quiet() {
  if (found_ || !started_) return progress();
  // A whole description came and was refused; the source waits for our answer, so waiting on would be for ever.
  if (stuck_at_ == buffer_.size()) return wire_error(fmt::format("device state: {}", rejected_));
  if (buffer_.back() != std::byte{mark::eof}) return progress();
  MD_CHECK(try_footers(buffer_.size() - 1, std::nullopt, Globalstate::required));
  return progress();
}

DeviceTailContents DeviceTail::take() && {
  DeviceTailContents out;
  out.sections = std::move(early_);
  if (!found_) return out;
  const ByteView bytes = ByteView(buffer_).subspan(start_);
  for (SectionSpan& span : found_->sections) out.sections.push_back(take_section(span, bytes));
  out.description = std::move(found_->description);
  out.proof = found_->proof;
  return out;
}

}  // namespace migrationd::stream
