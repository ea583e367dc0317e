// SPDX-License-Identifier: Apache-2.0
//
// A depth-first search over headers. A level of the stack is one section whose header is believed; its footers are
// tried from the left, and each one that is followed by a believable header opens the next level. What keeps
// hostile bytes from making this exponential: a header from which no chain reaches the end is remembered and never
// entered again, and everything is paid from a budget. (A header that failed because of what stood before it, an id
// in use or a required section that was missing, is not remembered: on another path it may be right.)
#include "protocol/stream/footer_scan.hpp"

#include "base/limits.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_set>

namespace migrationd::stream {

namespace {

constexpr std::uint32_t plausible_instances = 65536;
constexpr std::uint32_t plausible_versions = 256;
// What a believed header and a found footer cost of the budget, besides the bytes searched.
constexpr std::uint64_t level_cost = 1024;
constexpr std::uint64_t footer_cost = 160;

bool is_plausible(const SectionHeader& header) {
  return !header.name.empty() && header.instance_id < plausible_instances && header.version_id < plausible_versions &&
         std::all_of(header.name.begin(), header.name.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

// Offset of 7e and the id at or behind `from`; nothing when there is none.
std::optional<std::size_t> find_footer(ByteView bytes, std::size_t from, std::uint32_t section_id) {
  std::byte pattern[footer_bytes];
  pattern[0] = std::byte{mark::footer};
  store_be(pattern + 1, section_id);
  if (from >= bytes.size()) return std::nullopt;
  const void* hit = memmem(bytes.data() + from, bytes.size() - from, pattern, sizeof pattern);
  if (hit == nullptr) return std::nullopt;
  return static_cast<std::size_t>(static_cast<const std::byte*>(hit) - bytes.data());
}

std::optional<SectionSpan> header_at(ByteView bytes, std::size_t at) {
  auto element = decode_element(bytes.subspan(at));
  if (!element.is_ready()) return std::nullopt;
  SectionFull* full = std::get_if<SectionFull>(&element.value());
  if (full == nullptr || !is_plausible(full->header)) return std::nullopt;
  return SectionSpan{std::move(full->header), at + element.consumed(), 0};
}

class Scan {
 public:
  Scan(ByteView bytes, const ScanRules& rules, ScanBudget& budget)
      : bytes_(bytes), rules_(rules), budget_(budget), ids_(rules.used_ids.begin(), rules.used_ids.end()) {
    ids_.insert(rules.ram_section_id);
  }

  Result<std::vector<SectionSpan>> run() {
    if (bytes_.empty() && sections_wanted(0) && has_required()) return std::vector<SectionSpan>();
    MD_CHECK(try_level(0));
    while (!levels_.empty()) {
      MD_TRY(const bool complete, step());
      if (complete) return take_spans();
    }
    return wire_error("no chain of section headers and footers covers the device state");
  }

 private:
  struct Level {
    SectionSpan span;
    std::size_t at = 0;    // of the header
    std::size_t from = 0;  // where the search for its footer goes on
    bool tainted = false;  // something below failed only because of what stands above
  };

  // The next footer of the topmost section. True when it ends the chain.
  Result<bool> step() {
    Level& top = levels_.back();
    const auto footer = find_footer(bytes_, top.from, top.span.header.section_id);
    MD_CHECK(spend((footer ? *footer : bytes_.size()) - std::min(top.from, bytes_.size()) + footer_cost));
    if (!footer) {
      leave_level();
      return false;
    }
    top.from = *footer + 1;
    top.span.body_length = *footer - top.span.body_offset;
    const std::size_t next = *footer + footer_bytes;
    if (next == bytes_.size()) {
      if (sections_wanted(levels_.size()) && has_required()) return true;
      // Behind another chain the same header may be right.
      top.tainted = true;
      return false;
    }
    MD_CHECK(try_level(next));
    return false;
  }

  // Believes the header at `at`, if there is one that may stand there.
  Result<void> try_level(std::size_t at) {
    if (levels_.size() >= limits::sections || failed_.contains(key(at))) return {};
    auto span = header_at(bytes_, at);
    if (!span || !is_expected(span->header)) return {};
    if (!ids_.insert(span->header.section_id).second) {
      if (!levels_.empty()) levels_.back().tainted = true;
      return {};
    }
    MD_CHECK(spend(level_cost));
    const std::size_t from = span->body_offset;
    levels_.push_back(Level{std::move(*span), at, from, false});
    return {};
  }

  void leave_level() {
    const Level& top = levels_.back();
    const bool tainted = top.tainted;
    const std::size_t at = top.at;
    ids_.erase(top.span.header.section_id);
    levels_.pop_back();
    if (!tainted) failed_.insert(key(at));
    if (tainted && !levels_.empty()) levels_.back().tainted = true;
  }

  bool sections_wanted(std::size_t count) const noexcept {
    return rules_.expected == nullptr || rules_.expected->size() == count;
  }

  bool has_required() const {
    const auto is_required = [this](const Level& level) { return level.span.header.name == rules_.required_name; };
    return rules_.required_name.empty() || std::any_of(levels_.begin(), levels_.end(), is_required);
  }

  bool is_expected(const SectionHeader& header) const {
    if (rules_.expected == nullptr) return true;
    if (levels_.size() >= rules_.expected->size()) return false;
    const ExpectedSection& expected = (*rules_.expected)[levels_.size()];
    return header.name == expected.name && header.instance_id == expected.instance_id;
  }

  // With a list of expected sections a header may fail as the third and be right as the fourth.
  std::uint64_t key(std::size_t at) const noexcept {
    return static_cast<std::uint64_t>(at) * (limits::sections + 1) + (rules_.expected != nullptr ? levels_.size() : 0);
  }

  Result<void> spend(std::uint64_t cost) {
    if (budget_.bytes < cost) {
      return Error(ErrorKind::limit,
                   fmt::format("the search for section borders has looked at {} bytes", limits::footer_scan_bytes));
    }
    budget_.bytes -= cost;
    return {};
  }

  std::vector<SectionSpan> take_spans() {
    std::vector<SectionSpan> out;
    out.reserve(levels_.size());
    for (Level& level : levels_) out.push_back(std::move(level.span));
    return out;
  }

  ByteView bytes_;
  const ScanRules& rules_;
  ScanBudget& budget_;
  std::unordered_set<std::uint32_t> ids_;
  std::unordered_set<std::uint64_t> failed_;
  std::vector<Level> levels_;
};

enum class Follows : std::uint8_t { yes, no, unknown };

// Whether what stands behind an early section's footer is the next element. `needed` is set for unknown.
Follows element_follows(ByteView rest, std::uint32_t ram_section_id, std::size_t& needed) {
  auto element = decode_element(rest);
  if (element.needs_more()) {
    needed = element.needed();
    return Follows::unknown;
  }
  if (element.failed()) return Follows::no;
  const Element& head = element.value();
  if (const auto* part = std::get_if<SectionPart>(&head)) {
    return part->section_id == ram_section_id ? Follows::yes : Follows::no;
  }
  if (const auto* end = std::get_if<SectionEnd>(&head)) {
    return end->section_id == ram_section_id ? Follows::yes : Follows::no;
  }
  if (const auto* start = std::get_if<SectionStart>(&head)) {
    return is_plausible(start->header) ? Follows::yes : Follows::no;
  }
  if (const auto* full = std::get_if<SectionFull>(&head))
    return is_plausible(full->header) ? Follows::yes : Follows::no;
  return std::holds_alternative<Command>(head) ? Follows::yes : Follows::no;
}

}  // namespace

Result<std::vector<SectionSpan>> scan_sections(ByteView device_bytes, const ScanRules& rules, ScanBudget& budget) {
  return Scan(device_bytes, rules, budget).run();
}

Decoded<std::size_t> EarlySectionScan::feed(ByteView available) {
  using Answer = Decoded<std::size_t>;
  for (;;) {
    const auto footer = find_footer(available, searched_, section_id_);
    if (!footer) {
      // A footer may have begun in the last four bytes.
      searched_ = std::max(searched_, available.size() - std::min(available.size(), footer_bytes - 1));
      if (available.size() > limits::device_state_bytes) {
        return Error(ErrorKind::limit, fmt::format("its end is not within {} bytes", limits::device_state_bytes));
      }
      return Answer::need_more(std::max(available.size() + 1, footer_bytes + 1));
    }
    searched_ = *footer;
    const std::size_t next = *footer + footer_bytes;
    std::size_t needed = 0;
    switch (element_follows(available.subspan(next), ram_section_id_, needed)) {
      case Follows::yes:
        return Answer::ready(*footer, next);
      case Follows::unknown:
        return Answer::need_more(next + needed);
      case Follows::no:
        searched_ = *footer + 1;
    }
  }
}

}  // namespace migrationd::stream
