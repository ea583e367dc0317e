// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/synthetic_pattern.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <utility>

namespace migrationd::synthetic {
namespace {

// Two 64-bit lanes: a vector on every x86-64 and arm64 at any level of optimisation.
using Lanes = std::uint64_t __attribute__((vector_size(16)));

constexpr std::uint64_t magic = 0x31504e59534d444dU;  // "MDMSYNP1" as bytes in memory
constexpr std::size_t words_per_page = ram::page_size / 8;
constexpr std::size_t header_words = 4;
constexpr std::size_t lanes_per_body = (words_per_page - header_words) / 2;
constexpr std::uint64_t step = 0x9e3779b97f4a7c15U;

std::array<std::uint64_t, header_words> header_of(const PageIdentity& identity) noexcept {
  return {magic, identity.page, identity.generation, identity.seed};
}

std::uint64_t key_of(const PageIdentity& identity) noexcept {
  return mix(identity.page ^ mix(identity.generation ^ mix(identity.seed)));
}

// The body's lanes, one after the other: a counter through xorshift. Only additions, shifts and exclusive-or, which
// vector units have for 64-bit lanes.
class Body {
 public:
  explicit Body(const PageIdentity& identity) noexcept : counter_{key_of(identity), key_of(identity) + step} {}
  Lanes next() noexcept {
    Lanes value = counter_;
    counter_ += Lanes{2 * step, 2 * step};
    value ^= value << 13;
    value ^= value >> 7;
    value ^= value << 17;
    return value;
  }

 private:
  Lanes counter_;
};

}  // namespace

// The mover reads pages while they are written: that is what dirty tracking is for, and no race of the program's.
__attribute__((no_sanitize("thread"))) void write_page(std::byte* to, const PageIdentity& identity) noexcept {
  const auto header = header_of(identity);
  std::memcpy(to, header.data(), sizeof header);
  to += sizeof header;
  Body body(identity);
  for (std::size_t i = 0; i < lanes_per_body; ++i) {
    const Lanes value = body.next();
    std::memcpy(to + i * sizeof value, &value, sizeof value);
  }
}

bool page_is(const std::byte* from, const PageIdentity& identity) noexcept {
  const auto header = header_of(identity);
  if (std::memcmp(from, header.data(), sizeof header) != 0) return false;
  from += sizeof header;
  Body body(identity);
  Lanes difference{};
  for (std::size_t i = 0; i < lanes_per_body; ++i) {
    Lanes found;
    std::memcpy(&found, from + i * sizeof found, sizeof found);
    difference |= found ^ body.next();
  }
  return (difference[0] | difference[1]) == 0;
}

__attribute__((no_sanitize("thread"))) bool page_begins(const std::byte* from, const PageIdentity& identity) noexcept {
  const auto header = header_of(identity);
  return std::memcmp(from, header.data(), sizeof header) == 0;
}

__attribute__((no_sanitize("thread"))) bool page_begins_zero(const std::byte* from) noexcept {
  const std::array<std::uint64_t, header_words> zeros{};
  return std::memcmp(from, zeros.data(), sizeof zeros) == 0;
}

bool page_is_zero(const std::byte* from) noexcept {
  Lanes any{};
  for (std::size_t i = 0; i < ram::page_size / sizeof(Lanes); ++i) {
    Lanes found;
    std::memcpy(&found, from + i * sizeof found, sizeof found);
    any |= found;
  }
  return (any[0] | any[1]) == 0;
}

std::string explain_page(const std::byte* from, const PageIdentity& expected) {
  const std::string wanted = fmt::format("expected generation {}, found ", expected.generation);
  if (page_is_zero(from)) return wanted + "a zero page (lost)";
  std::array<std::uint64_t, header_words> header{};
  std::memcpy(header.data(), from, sizeof header);
  if (header[0] != magic) return wanted + "bytes that are no page of the guest";
  if (header[3] != expected.seed) return wanted + fmt::format("a page of a guest with seed {}", header[3]);
  if (header[1] != expected.page) {
    return wanted + fmt::format("page {} of block {}, generation {} (misplaced)", header[1] & 0xffffffffffffU,
                                header[1] >> 48, header[2]);
  }
  const PageIdentity claimed{expected.page, header[2], expected.seed};
  if (page_is(from, claimed)) {
    return wanted + fmt::format("generation {} ({})", header[2], header[2] < expected.generation ? "stale" : "too new");
  }
  std::array<std::byte, ram::page_size> whole{};
  write_page(whole.data(), claimed);
  const auto differs = std::mismatch(whole.begin(), whole.end(), from).first - whole.begin();
  return wanted + fmt::format("generation {} torn at byte {}", header[2], differs);
}

// --- order -----------------------------------------------------------------------------------------------
namespace {

// The first number from `start` on that shares no divisor with `pages`; 1 is one for every `pages`.
std::uint64_t coprime_from(std::uint64_t start, std::uint64_t pages) noexcept {
  std::uint64_t candidate = std::clamp<std::uint64_t>(start, 1, pages);
  while (std::gcd(candidate, pages) != 1) candidate = candidate >= pages ? 1 : candidate + 1;
  return candidate;
}

// x with (factor * x) mod pages == 1, by the extended Euclidean algorithm. pages <= 2^32, so nothing overflows.
std::uint64_t inverse_of(std::uint64_t factor, std::uint64_t pages) noexcept {
  auto remainder = static_cast<std::int64_t>(pages);
  auto next = static_cast<std::int64_t>(factor);
  std::int64_t coefficient = 0;
  std::int64_t next_coefficient = 1;
  while (next != 0) {
    const std::int64_t quotient = remainder / next;
    remainder = std::exchange(next, remainder - quotient * next);
    coefficient = std::exchange(next_coefficient, coefficient - quotient * next_coefficient);
  }
  const auto modulus = static_cast<std::int64_t>(pages);
  return static_cast<std::uint64_t>((coefficient % modulus + modulus) % modulus);
}

}  // namespace

void WriteOrder::enter(std::uint64_t round) noexcept {
  if (round_.number == round) return;
  const std::uint64_t chance = mix(seed_ ^ mix(round));
  round_.number = round;
  round_.offset = chance % pages_;
  switch (round % 4) {
    case 0:
      round_.factor = 1;
      break;
    case 1:
      round_.factor = pages_ > 1 ? pages_ - 1 : 1;
      break;
    case 2:
      round_.factor = coprime_from(pages_ * 618 / 1000, pages_);
      break;
    default:
      round_.factor = coprime_from(mix(chance) % pages_, pages_);
      break;
  }
  round_.inverse = pages_ > 1 ? inverse_of(round_.factor, pages_) : 0;
}

std::uint64_t WriteOrder::at(std::uint64_t k) noexcept {
  enter(k / pages_);
  return ((k % pages_) * round_.factor % pages_ + round_.offset) % pages_;
}

std::uint64_t WriteOrder::times(std::uint64_t index, std::uint64_t writes) noexcept {
  const std::uint64_t round = writes / pages_;
  enter(round);
  const std::uint64_t position = (index + pages_ - round_.offset) % pages_ * round_.inverse % pages_;
  return round + (position < writes % pages_ ? 1 : 0);
}

// --- place -----------------------------------------------------------------------------------------------
namespace {
constexpr std::uint64_t piece_pages = ram::huge_page_size / ram::page_size;
}

PagePlaces::PagePlaces(const GuestShape& shape) noexcept : used_(shape.used_pages()) {
  const std::uint64_t used_pieces = (used_ + piece_pages - 1) / piece_pages;
  const std::uint64_t pieces = shape.ram_pages / piece_pages;
  // A last piece that is not whole can be used only when nothing is spread.
  stride_ = used_pieces == 0 ? 1 : std::max<std::uint64_t>(1, pieces / used_pieces);
}

std::uint64_t PagePlaces::physical(std::uint64_t logical) const noexcept {
  return logical / piece_pages * stride_ * piece_pages + logical % piece_pages;
}

std::optional<std::uint64_t> PagePlaces::logical(std::uint64_t physical) const noexcept {
  const std::uint64_t piece = physical / piece_pages;
  if (piece % stride_ != 0) return std::nullopt;
  const std::uint64_t page = piece / stride_ * piece_pages + physical % piece_pages;
  if (page >= used_) return std::nullopt;
  return page;
}

Slice slice_of(const GuestShape& shape, std::uint32_t thread) noexcept {
  // Not working_pages * thread / threads: the first slices take what does not divide.
  const std::uint64_t each = shape.working_pages / shape.threads;
  const std::uint64_t more = shape.working_pages % shape.threads;
  return {each * thread + std::min<std::uint64_t>(thread, more), each + (thread < more ? 1 : 0)};
}

std::uint64_t order_seed(const GuestShape& shape, std::uint32_t thread) noexcept {
  return mix(shape.seed + mix(thread));
}

Ledger::Ledger(const GuestShape& shape, std::vector<std::uint64_t> writes)
    : shape_(shape), places_(shape), writes_(std::move(writes)) {
  for (std::uint32_t thread = 0; thread < shape.threads; ++thread) {
    orders_.emplace_back(slice_of(shape, thread).count, order_seed(shape, thread));
  }
}

std::optional<std::uint64_t> Ledger::logical_generation(std::uint64_t logical) noexcept {
  std::uint64_t times = 0;
  if (logical < shape_.working_pages) {
    const std::uint64_t each = shape_.working_pages / shape_.threads;
    const std::uint64_t large = shape_.working_pages % shape_.threads * (each + 1);
    const auto thread = static_cast<std::uint32_t>(
        logical < large ? logical / (each + 1) : shape_.working_pages % shape_.threads + (logical - large) / each);
    times = orders_[thread].times(logical - slice_of(shape_, thread).first, writes_[thread]);
  }
  if (times == 0 && logical >= shape_.touched_pages) return std::nullopt;
  return times;
}

std::uint64_t Ledger::pages_with_data() noexcept {
  std::uint64_t count = shape_.touched_pages;
  for (std::uint64_t page = shape_.touched_pages; page < shape_.working_pages; ++page) {
    if (logical_generation(page)) ++count;
  }
  return count;
}

std::optional<std::uint64_t> Ledger::generation(std::uint64_t physical) noexcept {
  const auto logical = places_.logical(physical);
  if (!logical) return std::nullopt;
  return logical_generation(*logical);
}

}  // namespace migrationd::synthetic
