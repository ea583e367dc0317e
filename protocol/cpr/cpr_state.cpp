// SPDX-License-Identifier: Apache-2.0
#include "protocol/cpr/cpr_state.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace migrationd::cpr {

void encode_header(ByteWriter& out) { out.u32(magic).u32(version); }

void encode_entry(ByteWriter& out, std::string_view name, std::int32_t id) {
  out.u8(1).u32(static_cast<std::uint32_t>(name.size() + 1));
  out.text(name).u8(0).u32(static_cast<std::uint32_t>(id));
}

Result<void> check_name(std::string_view name) {
  if (name.empty() || name.size() > name_bytes) {
    return plan_error(fmt::format("descriptor '{}': a name has 1 to {} bytes", printable(name), name_bytes));
  }
  if (name.find('\0') != std::string_view::npos) {
    return plan_error(fmt::format("descriptor '{}': a name has no NUL inside", printable(name)));
  }
  return {};
}

const char* CprStateDecoder::name_of(State state) noexcept {
  switch (state) {
    case State::magic_number:
      return "the magic number";
    case State::version_number:
      return "the version";
    case State::marker:
      return "the mark of the next entry";
    case State::name_length:
      return "a name's length";
    case State::name:
      return "a name";
    case State::id:
      return "an id";
    case State::descriptor:
      return "a descriptor";
    case State::ended:
      break;
  }
  return "the end";
}

std::size_t CprStateDecoder::element_bytes() const noexcept {
  switch (state_) {
    case State::marker:
    case State::descriptor:
      return 1;
    case State::name:
      return name_length_;
    case State::magic_number:
    case State::version_number:
    case State::name_length:
    case State::id:
    case State::ended:
      break;
  }
  return sizeof(std::uint32_t);
}

Error CprStateDecoder::refused(std::string why) const {
  return wire_error(fmt::format("cpr channel: entry {}: {}", entries_.size() + 1, why));
}

Result<void> CprStateDecoder::feed(ByteView bytes, std::vector<UniqueFd> descriptors) {
  std::move(descriptors.begin(), descriptors.end(), std::back_inserter(waiting_));
  if (waiting_.size() > most_entries - entries_.size()) {
    return Error(ErrorKind::limit, fmt::format("cpr channel: more than {} descriptors", most_entries));
  }
  taken_ += bytes.size();
  while (!bytes.empty()) {
    if (state_ == State::ended) return wire_error("cpr channel: bytes behind the end of the list");
    const std::size_t wanted = std::min(element_bytes() - element_.size(), bytes.size());
    element_.insert(element_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(wanted));
    bytes = bytes.subspan(wanted);
    if (element_.size() < element_bytes()) break;
    const Bytes element = std::exchange(element_, Bytes());
    MD_CHECK(take_element(element));
  }
  return {};
}

Result<void> CprStateDecoder::take_element(ByteView element) {
  switch (state_) {
    case State::magic_number: {
      const auto received = load_be<std::uint32_t>(element.data());
      if (received != magic) {
        return wire_error(fmt::format("cpr channel: Not a migration stream (bad magic {:08x})", received));
      }
      state_ = State::version_number;
      return {};
    }
    case State::version_number: {
      const auto received = load_be<std::uint32_t>(element.data());
      if (received != version) {
        return wire_error(fmt::format("cpr channel: Unsupported migration stream version {}", received));
      }
      state_ = State::marker;
      return {};
    }
    case State::marker:
      if (element[0] == end_of_list) {
        state_ = State::ended;
        return {};
      }
      if (element[0] != std::byte{1}) {
        return refused(
            fmt::format("byte {:#04x} where an entry (0x01) or the end of the list (0x00) is due", element[0]));
      }
      if (entries_.size() >= most_entries) {
        return Error(ErrorKind::limit, fmt::format("cpr channel: more than {} entries", most_entries));
      }
      state_ = State::name_length;
      return {};
    case State::name_length:
      name_length_ = load_be<std::uint32_t>(element.data());
      if (name_length_ < 2 || name_length_ > name_bytes + 1) {
        return refused(fmt::format("a name of {} bytes with its NUL, 2 to {} are taken", name_length_, name_bytes + 1));
      }
      state_ = State::name;
      return {};
    case State::name: {
      const std::string_view text = as_text(element);
      if (text.find('\0') != text.size() - 1) {
        return refused(fmt::format("name '{}' does not end with its first NUL", printable(text)));
      }
      entry_.name = text.substr(0, text.size() - 1);
      state_ = State::id;
      return {};
    }
    case State::id:
      entry_.id = static_cast<std::int32_t>(load_be<std::uint32_t>(element.data()));
      if (!names_.emplace(entry_.name, entry_.id).second) {
        return refused(fmt::format("'{}' (id {}) is listed twice", printable(entry_.name), entry_.id));
      }
      state_ = State::descriptor;
      return {};
    case State::descriptor:
      return take_descriptor();
    case State::ended:
      break;
  }
  return {};
}

Result<void> CprStateDecoder::take_descriptor() {
  if (waiting_.empty()) {
    return refused(fmt::format("'{}' (id {}) came without its descriptor", printable(entry_.name), entry_.id));
  }
  entry_.fd = std::move(waiting_.front());
  waiting_.pop_front();
  entries_.push_back(std::exchange(entry_, NamedDescriptor()));
  state_ = State::marker;
  return {};
}

Result<std::vector<NamedDescriptor>> CprStateDecoder::finish() && {
  if (state_ != State::ended) {
    return wire_error(fmt::format("cpr channel: it ends after {} bytes and {} entries, where {} is due", taken_,
                                  entries_.size(), name_of(state_)));
  }
  if (!waiting_.empty()) {
    return wire_error(fmt::format("cpr channel: {} more descriptors than entries", waiting_.size()));
  }
  return std::move(entries_);
}

}  // namespace migrationd::cpr
