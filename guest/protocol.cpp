// SPDX-License-Identifier: Apache-2.0
#include "guest/protocol.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

namespace migrationd::guest {

namespace {

// A body being read. The first fault sticks and what is read behind it is zero, so that a decoder is a list of its
// members and faults are looked at once, at the end.
class BodyReader {
 public:
  BodyReader(const char* message, ByteView body) noexcept : message_(message), in_(body) {}

  std::uint8_t u8(const char* member) { return take(in_.u8(), member); }
  std::uint16_t u16(const char* member) { return take(in_.u16(), member); }
  std::uint32_t u32(const char* member) { return take(in_.u32(), member); }
  std::uint64_t u64(const char* member) { return take(in_.u64(), member); }
  bool flag(const char* member) { return enumeration<std::uint8_t>(member, 0, 1) == 1; }
  template <class Value>
  Value enumeration(const char* member, unsigned least, unsigned most) {
    const unsigned value = u8(member);
    require(value >= least && value <= most, member,
            [&] { return fmt::format("{} is none of {} to {}", value, least, most); });
    return static_cast<Value>(value);
  }
  std::string text(const char* member, bool (*fits)(std::string_view), const char* rule) {
    const std::size_t length = u16(member);
    if (error_) return {};
    auto bytes = in_.bytes(length);
    if (!bytes) {
      fail(member, bytes.error().text());
      return {};
    }
    const std::string_view found = as_text(*bytes);
    require(fits(found), member, [&] { return fmt::format("'{}' is not {}", printable(found), rule); });
    return std::string(found);
  }
  std::string name(const char* member) { return text(member, &is_name, "1 to 255 bytes of printable ASCII"); }
  std::string sentence(const char* member) {
    return text(member, &is_sentence, "at most 4096 bytes of UTF-8 without control characters");
  }
  ByteView bytes(const char* member, std::size_t length) {
    if (error_) return {};
    auto view = in_.bytes(length);
    if (view) return *view;
    fail(member, view.error().text());
    return {};
  }

  template <class Why>
  void require(bool right, const char* member, Why why) {
    if (!right && !error_) fail(member, why());
  }
  void require(bool right, const char* member, const char* why) {
    if (!right && !error_) fail(member, why);
  }
  Result<void> finish() {
    if (!error_ && !in_.at_end()) {
      error_ = wire_error(fmt::format("{}: {} bytes too many", message_, in_.remaining()));
    }
    if (error_) return *std::move(error_);
    return {};
  }
  std::size_t remaining() const noexcept { return in_.remaining(); }
  bool failed() const noexcept { return error_.has_value(); }

 private:
  template <class Value>
  Value take(Result<Value> value, const char* member) {
    if (error_) return {};
    if (value) return *value;
    fail(member, value.error().text());
    return {};
  }
  void fail(const char* member, const std::string& why) {
    error_ = wire_error(fmt::format("{}: {}: {}", message_, member, why));
  }

  const char* message_;
  ByteReader in_;
  std::optional<Error> error_;
};

// Bytes of the UTF-8 character at the front of `text`; 0: there is none, or it is a control character.
std::size_t character_bytes(std::string_view text) noexcept {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = at(0);
  if (lead < 0x80) return lead >= 0x20 && lead != 0x7f ? 1 : 0;
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((at(i) & 0xc0U) != 0x80) return 0;
  }
  const unsigned second = at(1);
  const bool is_overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
  const bool is_outside = (lead == 0xed && second > 0x9f) || (lead == 0xf4 && second > 0x8f);
  const bool is_control = lead == 0xc2 && second < 0xa0;  // C1
  return is_overlong || is_outside || is_control ? 0 : length;
}

void put_text(std::string_view text, ByteWriter& out) {
  text = text.substr(0, 0xffff);
  out.u16(static_cast<std::uint16_t>(text.size())).text(text);
}

void put_sentence(std::string_view text, ByteWriter& out) {
  std::string fit;
  while (!text.empty()) {
    const std::size_t length = character_bytes(text);
    if (fit.size() + std::max<std::size_t>(length, 1) > text_bytes) break;
    if (length == 0) {
      fit += '?';
    } else {
      fit += text.substr(0, length);
    }
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  put_text(fit, out);
}

bool is_page_size(std::uint32_t bytes) noexcept { return bytes == 4096 || bytes == 2097152; }

void check_size(BodyReader& in, std::uint64_t length, std::uint32_t page_size) {
  in.require(is_page_size(page_size), "page size",
             [&] { return fmt::format("{} is neither 4096 nor 2097152", page_size); });
  in.require(length > 0 && length <= limits::ram_block_bytes, "length",
             [&] { return fmt::format("{} is not in 1 to {}", hex(length), hex(limits::ram_block_bytes)); });
  in.require(in.failed() || length % page_size == 0, "length",
             [&] { return fmt::format("{} is not a multiple of the page size {}", hex(length), page_size); });
}

// --- one read() per body, in the order of the wire -----------------------------------------------------------------

void read(BodyReader& in, Hello& out) {
  const std::uint32_t magic = in.u32("magic");
  in.require(magic == hello_magic, "magic", [&] { return fmt::format("{} is not that of a guest", hex(magic)); });
  out.lowest = in.u16("lowest version");
  out.highest = in.u16("highest version");
  in.require(out.lowest > 0 && out.lowest <= out.highest, "versions",
             [&] { return fmt::format("{} to {} is no range", out.lowest, out.highest); });
  out.library = in.name("library");
  out.machine_name = in.name("machine name");
  out.vcpus = in.u32("vCPUs");
  in.require(out.vcpus <= guest_vcpus, "vCPUs",
             [&] { return fmt::format("{} are more than {}", out.vcpus, guest_vcpus); });
  out.wants_device = in.flag("wants the device");
}
void read(BodyReader& in, Welcome& out) {
  out.version = in.u16("version");
  out.daemon = in.name("daemon");
  out.deadline_ms = in.u32("deadline");
  in.require(out.deadline_ms > 0, "deadline", "0 ms");
}
void read(BodyReader& in, AddBlock& out) {
  out.name = in.name("name");
  out.address = in.u64("address");
  out.length = in.u64("length");
  out.page_size = in.u32("page size");
  out.tracking = in.enumeration<Tracking>("tracking", 0, 3);
  check_size(in, out.length, out.page_size);
  in.require(in.failed() || (out.address > 0 && out.address % out.page_size == 0), "address",
             [&] { return fmt::format("{} is not aligned to pages of {}", hex(out.address), out.page_size); });
  in.require(out.address <= ~std::uint64_t{0} - out.length, "address",
             [&] { return fmt::format("{} and {} bytes wrap around", hex(out.address), hex(out.length)); });
}
void read(BodyReader& in, NewBlock& out) {
  out.name = in.name("name");
  out.length = in.u64("length");
  out.page_size = in.u32("page size");
  check_size(in, out.length, out.page_size);
}
void read(BodyReader& in, AddDevice& out) {
  out.id = in.name("id");
  out.instance = in.u32("instance");
  out.version = in.u32("version");
  out.minimum_version = in.u32("minimum version");
  const unsigned flags = in.u8("flags");
  in.require(out.instance != 0xffffffffU, "instance", "0xffffffff is not an instance id");
  in.require(out.version <= 0x7fffffffU, "version", [&] { return fmt::format("{} is negative", hex(out.version)); });
  in.require(out.minimum_version <= out.version, "minimum version",
             [&] { return fmt::format("{} is above the version {}", out.minimum_version, out.version); });
  in.require(flags <= 3, "flags", [&] { return fmt::format("{} has unknown bits", hex(flags)); });
  out.unmigratable = (flags & 1U) != 0;
  out.early = (flags & 2U) != 0;
}
void read(BodyReader& in, Ready& out) {
  out.state = in.enumeration<GuestState>("state", 0, 2);
  const ByteView uuid = in.bytes("UUID", out.uuid.size());
  if (!in.failed()) std::memcpy(out.uuid.data(), uuid.data(), out.uuid.size());
}
void read(BodyReader& in, AddBlocker& out) {
  out.reason = in.sentence("reason");
  in.require(!out.reason.empty(), "reason", "is empty");
}
void read(BodyReader& in, BlockerNumber& out) { out.number = in.u32("number"); }
void read(BodyReader& in, GivenBack& out) {
  out.block = in.u32("block");
  out.offset = in.u64("offset");
  out.length = in.u64("length");
  in.require(out.block < guest_blocks, "block", [&] { return fmt::format("{} does not exist", out.block); });
  in.require(out.length > 0 && out.offset % 4096 == 0 && out.length % 4096 == 0, "range", [&] {
    return fmt::format("offset {} and length {} are not whole pages", hex(out.offset), hex(out.length));
  });
  in.require(out.length <= limits::ram_block_bytes && out.offset <= limits::ram_block_bytes - out.length, "range",
             [&] { return fmt::format("offset {} and length {} lie in no block", hex(out.offset), hex(out.length)); });
}
void read(BodyReader& in, Throttle& out) {
  out.percent = in.u8("percent");
  in.require(out.percent <= 99, "percent", [&] { return fmt::format("{} is above 99", out.percent); });
}
void read(BodyReader& in, StateLength& out) {
  out.length = in.u64("length");
  in.require(out.length >= 8 && out.length <= state_file_bytes, "length",
             [&] { return fmt::format("{} is not in 8 to {}", out.length, state_file_bytes); });
}
void read(BodyReader& in, Watch& out) {
  out.purpose = in.enumeration<Purpose>("purpose", 1, 3);
  out.features = in.u64("features");
}
void read(BodyReader& in, Unwatch& out) { out.purpose = in.enumeration<Purpose>("purpose", 1, 3); }
void read(BodyReader& in, DirtyLogSwitch& out) { out.on = in.flag("on"); }
void read(BodyReader& in, OutcomeNotice& out) {
  out.what = in.enumeration<Outcome>("what", 1, 3);
  out.why = in.sentence("why");
}
void read(BodyReader& in, Refusal& out) { out.why = in.sentence("why"); }
void read(BodyReader& in, Empty&) { static_cast<void>(in); }

// The message a body is of, for errors; bodies that serve two messages have the name of both.
constexpr const char* title(const Hello&) { return "HELLO"; }
constexpr const char* title(const Welcome&) { return "WELCOME"; }
constexpr const char* title(const AddBlock&) { return "ADD_BLOCK"; }
constexpr const char* title(const NewBlock&) { return "NEW_BLOCK"; }
constexpr const char* title(const AddDevice&) { return "ADD_DEVICE"; }
constexpr const char* title(const Ready&) { return "READY"; }
constexpr const char* title(const AddBlocker&) { return "ADD_BLOCKER"; }
constexpr const char* title(const BlockerNumber&) { return "blocker"; }
constexpr const char* title(const GivenBack&) { return "GIVEN_BACK"; }
constexpr const char* title(const Throttle&) { return "THROTTLE"; }
constexpr const char* title(const StateLength&) { return "state"; }
constexpr const char* title(const Watch&) { return "WATCH"; }
constexpr const char* title(const Unwatch&) { return "UNWATCH"; }
constexpr const char* title(const DirtyLogSwitch&) { return "DIRTY_LOG"; }
constexpr const char* title(const OutcomeNotice&) { return "OUTCOME"; }
constexpr const char* title(const Refusal&) { return "refusal"; }
constexpr const char* title(const Empty&) { return "message without body"; }

// --- one write() per body ------------------------------------------------------------------------------------------

void write(const Hello& body, ByteWriter& out) {
  out.u32(hello_magic).u16(body.lowest).u16(body.highest);
  put_text(body.library, out);
  put_text(body.machine_name, out);
  out.u32(body.vcpus).u8(body.wants_device ? 1 : 0);
}
void write(const Welcome& body, ByteWriter& out) {
  out.u16(body.version);
  put_text(body.daemon, out);
  out.u32(body.deadline_ms);
}
void write(const AddBlock& body, ByteWriter& out) {
  put_text(body.name, out);
  out.u64(body.address).u64(body.length).u32(body.page_size).u8(static_cast<std::uint8_t>(body.tracking));
}
void write(const NewBlock& body, ByteWriter& out) {
  put_text(body.name, out);
  out.u64(body.length).u32(body.page_size);
}
void write(const AddDevice& body, ByteWriter& out) {
  put_text(body.id, out);
  out.u32(body.instance).u32(body.version).u32(body.minimum_version);
  out.u8(static_cast<std::uint8_t>((body.unmigratable ? 1U : 0U) | (body.early ? 2U : 0U)));
}
void write(const Ready& body, ByteWriter& out) {
  out.u8(static_cast<std::uint8_t>(body.state)).bytes(std::as_bytes(std::span(body.uuid)));
}
void write(const AddBlocker& body, ByteWriter& out) { put_sentence(body.reason, out); }
void write(const BlockerNumber& body, ByteWriter& out) { out.u32(body.number); }
void write(const GivenBack& body, ByteWriter& out) { out.u32(body.block).u64(body.offset).u64(body.length); }
void write(const Throttle& body, ByteWriter& out) { out.u8(body.percent); }
void write(const StateLength& body, ByteWriter& out) { out.u64(body.length); }
void write(const Watch& body, ByteWriter& out) { out.u8(static_cast<std::uint8_t>(body.purpose)).u64(body.features); }
void write(const Unwatch& body, ByteWriter& out) { out.u8(static_cast<std::uint8_t>(body.purpose)); }
void write(const DirtyLogSwitch& body, ByteWriter& out) { out.u8(body.on ? 1 : 0); }
void write(const OutcomeNotice& body, ByteWriter& out) {
  out.u8(static_cast<std::uint8_t>(body.what));
  put_sentence(body.why, out);
}
void write(const Refusal& body, ByteWriter& out) { put_sentence(body.why, out); }
void write(const Empty&, ByteWriter&) {}

struct TypeRow {
  Type type;
  const char* name;
  const char* reply_name;  // null: a notice
  FdCount request_fds;
  FdCount reply_fds;
};

constexpr TypeRow type_rows[] = {
    {Type::hello, "HELLO", "reply to HELLO", {0, 0}, {0, 1}},
    {Type::add_block, "ADD_BLOCK", "reply to ADD_BLOCK", {1, 2}, {0, 0}},
    {Type::new_block, "NEW_BLOCK", "reply to NEW_BLOCK", {0, 0}, {1, 1}},
    {Type::add_device, "ADD_DEVICE", "reply to ADD_DEVICE", {0, 0}, {0, 0}},
    {Type::ready, "READY", "reply to READY", {0, 0}, {0, 0}},
    {Type::add_blocker, "ADD_BLOCKER", "reply to ADD_BLOCKER", {0, 0}, {0, 0}},
    {Type::delete_blocker, "DELETE_BLOCKER", "reply to DELETE_BLOCKER", {0, 0}, {0, 0}},
    {Type::given_back, "GIVEN_BACK", nullptr, {0, 0}, {0, 0}},
    {Type::detach, "DETACH", "reply to DETACH", {0, 0}, {0, 0}},
    {Type::stop, "STOP", "reply to STOP", {0, 0}, {0, 0}},
    {Type::start, "START", "reply to START", {0, 0}, {0, 0}},
    {Type::throttle, "THROTTLE", nullptr, {0, 0}, {0, 0}},
    {Type::save, "SAVE", "reply to SAVE", {0, 0}, {1, 1}},
    {Type::load, "LOAD", "reply to LOAD", {1, 1}, {0, 0}},
    {Type::watch, "WATCH", "reply to WATCH", {0, 0}, {1, 2}},
    {Type::unwatch, "UNWATCH", "reply to UNWATCH", {0, 0}, {0, 0}},
    {Type::dirty_log, "DIRTY_LOG", "reply to DIRTY_LOG", {0, 0}, {0, 0}},
    {Type::dirty_sync, "DIRTY_SYNC", "reply to DIRTY_SYNC", {0, 0}, {0, 0}},
    {Type::no_huge_pages, "NO_HUGE_PAGES", "reply to NO_HUGE_PAGES", {0, 0}, {0, 0}},
    {Type::outcome, "OUTCOME", nullptr, {0, 0}, {0, 0}},
};

// Of a request or a reply; null: no such type, or a reply to a notice.
const TypeRow* row_of(std::uint16_t type) noexcept {
  const auto request = static_cast<std::uint16_t>(type & ~reply_bit);
  for (const TypeRow& row : type_rows) {
    if (static_cast<std::uint16_t>(row.type) != request) continue;
    return type != request && row.reply_name == nullptr ? nullptr : &row;
  }
  return nullptr;
}

bool is_printable(std::string_view text) noexcept {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

}  // namespace

bool is_name(std::string_view text) noexcept {
  return !text.empty() && text.size() <= limits::name_bytes && is_printable(text);
}

bool is_sentence(std::string_view text) noexcept {
  if (text.size() > text_bytes) return false;
  while (!text.empty()) {
    const std::size_t length = character_bytes(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

const char* name_of(std::uint16_t type) noexcept {
  if (type == refusal) return "refusal";
  const TypeRow* row = row_of(type);
  if (row == nullptr) return "message of unknown type";
  return (type & reply_bit) != 0 ? row->reply_name : row->name;
}

bool is_notice(std::uint16_t type) noexcept {
  const TypeRow* row = row_of(type);
  return row != nullptr && row->reply_name == nullptr;
}

FdCount fds_of(std::uint16_t type) noexcept {
  const TypeRow* row = row_of(type);
  if (row == nullptr) return {};
  return (type & reply_bit) != 0 ? row->reply_fds : row->request_fds;
}

std::size_t fds_of(const AddBlock& block) noexcept {
  return block.tracking == Tracking::bitmap || block.tracking == Tracking::both ? 2 : 1;
}

Result<Header> decode_header(ByteReader& in) {
  if (in.remaining() < header_bytes) {
    return wire_error(fmt::format("message: {} bytes are less than a header", in.remaining()));
  }
  MD_TRY(const std::uint16_t type, in.u16());
  MD_TRY(const std::uint16_t zero, in.u16());
  MD_TRY(const std::uint32_t serial, in.u32());
  if (type != refusal && row_of(type) == nullptr) {
    return wire_error(fmt::format("message: type {} is unknown", hex(type)));
  }
  if (zero != 0) return wire_error(fmt::format("{}: reserved bytes are {}", name_of(type), hex(zero)));
  if (is_notice(type) != (serial == 0)) {
    return wire_error(fmt::format("{}: serial {}, {}", name_of(type), serial,
                                  serial == 0 ? "which notices have" : "but a notice has none"));
  }
  return Header{type, serial};
}

void encode_header(const Header& header, ByteWriter& out) { out.u16(header.type).u16(0).u32(header.serial); }

template <class Body>
Result<Body> decode(ByteView body) {
  Body out{};
  BodyReader in(title(out), body);
  read(in, out);
  MD_CHECK(in.finish());
  return out;
}

template <class Body>
void encode(const Body& body, ByteWriter& out) {
  write(body, out);
}

#define MD_GUEST_BODY(Body)                          \
  template Result<Body> decode<Body>(ByteView body); \
  template void encode<Body>(const Body& body, ByteWriter& out);
MD_GUEST_BODY(Hello)
MD_GUEST_BODY(Welcome)
MD_GUEST_BODY(AddBlock)
MD_GUEST_BODY(NewBlock)
MD_GUEST_BODY(AddDevice)
MD_GUEST_BODY(Ready)
MD_GUEST_BODY(AddBlocker)
MD_GUEST_BODY(BlockerNumber)
MD_GUEST_BODY(GivenBack)
MD_GUEST_BODY(Throttle)
MD_GUEST_BODY(StateLength)
MD_GUEST_BODY(Watch)
MD_GUEST_BODY(Unwatch)
MD_GUEST_BODY(DirtyLogSwitch)
MD_GUEST_BODY(OutcomeNotice)
MD_GUEST_BODY(Refusal)
MD_GUEST_BODY(Empty)
#undef MD_GUEST_BODY

}  // namespace migrationd::guest
