// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/synthetic_options.hpp"

#include "base/limits.hpp"
#include "base/option_words.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>

namespace migrationd {
namespace {

constexpr std::uint64_t default_working_set = std::uint64_t{64} << 20;

struct Words {
  SyntheticOptions options;
  std::optional<std::uint64_t> working_set;
  std::optional<std::uint64_t> touched;
};

Error bad_value(std::string_view key, std::string_view value, std::string_view wanted) {
  return plan_error(fmt::format("machine synthetic: {}={}: {} wanted", key, printable(value), wanted));
}

Result<std::uint64_t> number(std::string_view key, std::string_view text, std::string_view wanted) {
  std::uint64_t value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || fault != std::errc{} || end != text.data() + text.size()) return bad_value(key, text, wanted);
  return value;
}

Result<std::uint64_t> size(std::string_view key, std::string_view text) {
  constexpr std::string_view wanted = "a size (a number, or a number with K, M, G or T)";
  constexpr std::string_view units = "KMGT";
  unsigned shift = 0;
  std::string_view digits = text;
  if (!text.empty()) {
    const auto unit = units.find(text.back() >= 'a' ? static_cast<char>(text.back() - 32) : text.back());
    if (unit != std::string_view::npos) {
      shift = 10 * (static_cast<unsigned>(unit) + 1);
      digits.remove_suffix(1);
    }
  }
  auto value = number(key, digits, wanted);
  if (!value) return bad_value(key, text, wanted);
  if (*value > (~std::uint64_t{0} >> shift)) return bad_value(key, text, "a size below 2^64");
  return *value << shift;
}

Result<void> set_page_size(Words& words, std::string_view value) {
  MD_TRY(const std::uint64_t bytes, size("page-size", value));
  if (bytes != ram::page_size && bytes != ram::huge_page_size) return bad_value("page-size", value, "4K or 2M");
  words.options.page_size = bytes;
  return {};
}

Result<void> set_dirty_log(Words& words, std::string_view value) {
  using ram::DirtyLogKind;
  if (value == "auto") {
    words.options.dirty_log = DirtyLogKind::automatic;
  } else if (value == "async") {
    words.options.dirty_log = DirtyLogKind::wp_async;
  } else if (value == "sync") {
    words.options.dirty_log = DirtyLogKind::wp_sync;
  } else {
    return bad_value("dirty-log", value, "auto, async or sync");
  }
  return {};
}

Result<void> set_threads(Words& words, std::string_view value) {
  const std::string wanted = fmt::format("1 to {}", synthetic_threads_max);
  MD_TRY(const std::uint64_t threads, number("threads", value, wanted));
  if (threads < 1 || threads > synthetic_threads_max) return bad_value("threads", value, wanted);
  words.options.threads = static_cast<std::uint32_t>(threads);
  return {};
}

Result<void> set_prealloc(Words& words, std::string_view value) {
  if (value != "on" && value != "off") return bad_value("prealloc", value, "on or off");
  words.options.prealloc = value == "on";
  return {};
}

Result<void> set_word(Words& words, std::string_view key, std::string_view value) {
  if (key == "ram") {
    MD_TRY(words.options.ram, size(key, value));
  } else if (key == "dirty-rate") {
    MD_TRY(words.options.dirty_rate, size(key, value));
  } else if (key == "working-set") {
    MD_TRY(words.working_set, size(key, value));
  } else if (key == "touched") {
    MD_TRY(words.touched, size(key, value));
  } else if (key == "seed") {
    MD_TRY(words.options.seed, number(key, value, "a number"));
  } else if (key == "log") {
    if (value.empty()) return bad_value(key, value, "a path");
    words.options.log = std::string(value);
  } else if (key == "blocked") {
    if (value.empty()) return bad_value(key, value, "a reason");
    words.options.blocked = printable(value, limits::name_bytes);
  } else if (key == "page-size") {
    return set_page_size(words, value);
  } else if (key == "threads") {
    return set_threads(words, value);
  } else if (key == "dirty-log") {
    return set_dirty_log(words, value);
  } else if (key == "prealloc") {
    return set_prealloc(words, value);
  } else {
    return plan_error(fmt::format(
        "machine synthetic: unknown word '{}' (ram, page-size, dirty-rate, working-set, touched, threads, seed, log, "
        "dirty-log, prealloc, blocked)",
        printable(key)));
  }
  return {};
}

Error contradiction(std::string_view text) { return plan_error(fmt::format("machine synthetic: {}", text)); }

Result<SyntheticOptions> finish(Words words) {
  SyntheticOptions& options = words.options;
  if (options.ram == 0 || options.ram % options.page_size != 0) {
    return contradiction(fmt::format("ram={} is not a multiple of page-size={}", options.ram, options.page_size));
  }
  if (options.ram > limits::ram_block_bytes) {
    return contradiction(fmt::format("ram={} is above {}", options.ram, limits::ram_block_bytes));
  }
  options.working_set = words.working_set.value_or(std::min(options.ram, default_working_set));
  options.touched = words.touched.value_or(std::min(options.ram, options.working_set));
  for (const auto& [key, bytes] :
       {std::pair("working-set", options.working_set), std::pair("touched", options.touched)}) {
    if (bytes > options.ram) return contradiction(fmt::format("{}={} is more than ram={}", key, bytes, options.ram));
    if (bytes % ram::page_size != 0) return contradiction(fmt::format("{}={} is not a multiple of 4096", key, bytes));
  }
  if (options.dirty_rate != 0 && options.working_set / ram::page_size < options.threads) {
    return contradiction(fmt::format("working-set={} has less than one page for each of {} threads",
                                     options.working_set, options.threads));
  }
  return std::move(options);
}

}  // namespace

Result<SyntheticOptions> parse_synthetic_options(std::string_view text) {
  Words words;
  const auto name_end = std::min(text.find(','), text.size());
  if (text.substr(0, name_end) != "synthetic") {
    return plan_error(fmt::format("machine '{}' is not synthetic", printable(text.substr(0, name_end))));
  }
  std::set<std::string_view> seen;
  for (const auto& [word, key, value] : option_words(text)) {
    if (word.size() == key.size()) {
      return plan_error(fmt::format("machine synthetic: '{}' is not of the form key=value", printable(word)));
    }
    if (!seen.insert(key).second) return contradiction(fmt::format("'{}' stands twice", printable(key)));
    MD_CHECK(set_word(words, key, value));
  }
  return finish(std::move(words));
}

}  // namespace migrationd
