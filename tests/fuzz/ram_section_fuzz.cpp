// SPDX-License-Identifier: Apache-2.0
//
// A RAM section's body into memory, against a slow reader that decodes one record at a time into plain arrays. The
// input is a little program that writes the body, because pages are long and inputs short: runs of pages, zeros,
// deltas, bytes of its own, and bytes changed afterwards. Reads come in pieces of a size it chooses, and the memory
// holds what it chooses from before. When both come to the end, memory must be the same; when the slow one finds a
// fault, the fast one must, too. Above all this is for ScatterReader, which writes into memory before it knows.
#include "protocol/stream/compressed_page.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/xbzrle.hpp"
#include "ram/ram_section_reader.hpp"
#include "ram/store_plain.hpp"
#include "tests/unit/ram/memory_channel.hpp"

#include <array>
#include <cstdlib>
#include <optional>

using namespace migrationd;
using namespace migrationd::ram;
using migrationd::ram::test::MemoryChannel;

namespace {

constexpr std::array<std::size_t, 2> block_pages{48, 3};
constexpr std::size_t body_max = std::size_t{256} << 10;

void must(bool condition) {
  if (!condition) std::abort();
}

class Program {
 public:
  explicit Program(ByteView code) : code_(code) {}
  std::uint8_t take() {
    if (code_.empty()) return 0;
    const auto byte = static_cast<std::uint8_t>(code_.front());
    code_ = code_.subspan(1);
    return byte;
  }
  bool ended() const { return code_.empty(); }
  ByteView take_bytes(std::size_t count) {
    const ByteView bytes = code_.first(std::min(count, code_.size()));
    code_ = code_.subspan(bytes.size());
    return bytes;
  }

 private:
  ByteView code_;
};

std::string name_of(std::uint8_t choice) {
  constexpr std::array<const char*, 4> names{"a", "b", "", "c"};  // the empty one: the same block
  return names[choice % names.size()];
}

void put(Bytes& body, const std::byte* bytes, std::size_t count) { body.insert(body.end(), bytes, bytes + count); }

void put_pages(Bytes& body, Program& program) {
  const std::string name = name_of(program.take());
  const std::uint64_t first = program.take() % 52;
  const std::size_t count = program.take() % 40 + 1;
  const auto fill = static_cast<std::byte>(program.take());
  std::array<std::byte, stream::ram_record_header_max> header;
  for (std::size_t i = 0; i < count && body.size() < body_max; ++i) {
    put(body, header.data(), stream::encode_page_header(header.data(), (first + i) * page_size, i == 0 ? name : ""));
    body.insert(body.end(), page_size, static_cast<std::byte>(static_cast<std::size_t>(fill) + i));
  }
}

void put_zeros(Bytes& body, Program& program) {
  const std::string name = name_of(program.take());
  const std::uint64_t first = program.take() % 52;
  const std::size_t count = program.take() % 64 + 1;
  std::array<std::byte, stream::ram_record_header_max> record;
  for (std::size_t i = 0; i < count; ++i)
    put(body, record.data(), stream::encode_zero_record(record.data(), (first + i) * page_size, i == 0 ? name : ""));
}

void put_delta(Bytes& body, Program& program) {
  const std::string name = name_of(program.take());
  const std::uint64_t page = program.take() % 52;
  const ByteView delta = program.take_bytes(program.take() % 16 + 1);
  if (delta.empty()) return;
  std::array<std::byte, stream::ram_record_header_max> header;
  put(body, header.data(), stream::encode_xbzrle_header(header.data(), page * page_size, name, delta.size()));
  put(body, delta.data(), delta.size());
}

void change(Bytes& body, Program& program) {
  const std::size_t back = static_cast<std::size_t>(program.take()) << 8 | program.take();
  const auto mask = static_cast<std::byte>(program.take());
  if (back < body.size()) body[body.size() - 1 - back] ^= mask;
}

Bytes body_of(Program& program) {
  Bytes body;
  while (!program.ended() && body.size() < body_max) {
    switch (program.take() % 6) {
      case 0:
      case 1:
        put_pages(body, program);
        break;
      case 2:
        put_zeros(body, program);
        break;
      case 3:
        put_delta(body, program);
        break;
      case 4: {
        const ByteView raw = program.take_bytes(program.take() % 32);
        put(body, raw.data(), raw.size());
        break;
      }
      default:
        change(body, program);
    }
  }
  std::array<std::byte, stream::ram_record_header_max> end;
  put(body, end.data(), stream::encode_eos(end.data()));
  return body;
}

// --- the slow reader -----------------------------------------------------------------------------------------
using Model = std::array<Bytes, 2>;

bool apply(const stream::RamRecord& record, std::span<std::byte, page_size> page) {
  static stream::PageInflater inflater;
  if (record.kind == stream::RamKind::xbzrle) return bool(stream::xbzrle_decode(record.payload, page));
  if (record.kind == stream::RamKind::compressed) return bool(inflater.inflate(record.payload, page));
  if (record.kind == stream::RamKind::zero) {
    std::fill(page.begin(), page.end(), std::byte{0});
  } else {
    std::copy(record.payload.begin(), record.payload.end(), page.begin());
  }
  return true;
}

bool read_slowly(ByteView body, Model& model) {
  std::optional<std::size_t> block;
  while (true) {
    const stream::RamRecord record = stream::decode_ram_record(body, block.has_value());
    if (record.kind == stream::RamKind::eos) return true;
    const bool page = record.kind == stream::RamKind::zero || record.kind == stream::RamKind::page ||
                      record.kind == stream::RamKind::xbzrle || record.kind == stream::RamKind::compressed;
    if (!page) return false;
    if (record.named) {
      if (record.name != "a" && record.name != "b") return false;
      block = record.name == "a" ? 0 : 1;
    }
    Bytes& memory = model[*block];
    if (record.offset >= memory.size()) return false;
    if (!apply(record, std::span<std::byte, page_size>(memory.data() + record.offset, page_size))) return false;
    body = body.subspan(record.size);
  }
}

// --- the fast one ----------------------------------------------------------------------------------------------
RamMap make_map() {
  RamMap map;
  for (std::size_t i = 0; i < block_pages.size(); ++i) {
    auto block = RamBlock::create(i == 0 ? "a" : "b", block_pages[i] * page_size, page_size);
    must(block.has_value() && map.add(std::move(*block)).has_value());
  }
  return map;
}

// Bit i of `choice`: every i-th piece of 6 pages holds noise; the others are holes.
void prepare(RamMap& map, std::uint8_t choice) {
  for (std::size_t i = 0; i < map.size(); ++i) {
    must(map.at(i).punch(0, map.at(i).length()).has_value());
    for (std::size_t page = 0; page < block_pages[i]; ++page)
      if ((choice >> (page / 6 % 8) & 1) != 0) std::memset(map.at(i).engine() + page * page_size, 0xee, page_size);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static RamMap map = make_map();
  Program program(std::as_bytes(std::span(data, size)));
  const std::size_t largest_read = (static_cast<std::size_t>(program.take()) << 8 | program.take()) * 4 + 1;
  prepare(map, program.take());
  MemoryChannel channel(largest_read);
  channel.bytes = body_of(program);

  Model model{Bytes(block_pages[0] * page_size), Bytes(block_pages[1] * page_size)};
  const bool whole = read_slowly(channel.bytes, model);

  transports::BufferedReader reader(channel, std::size_t{128} << 10);
  auto store = StorePlain::make(map);
  must(store.has_value());
  ReceiveCounters counters;
  RamSectionReader body_reader(reader, map, **store, counters);
  const auto read = body_reader.read_body();
  must(bool(read) == whole);
  if (!whole) {
    must(!read.error().text().empty());
    return 0;
  }
  must((*store)->finish().has_value());
  for (std::size_t i = 0; i < map.size(); ++i)
    must(std::memcmp(map.at(i).engine(), model[i].data(), model[i].size()) == 0);
  return 0;
}
