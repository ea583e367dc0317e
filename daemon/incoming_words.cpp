// SPDX-License-Identifier: Apache-2.0
#include "daemon/incoming_words.hpp"

#include "daemon/control/channel_address.hpp"
#include "protocol/qmp/decode.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <string_view>
#include <utility>
#include <vector>

namespace migrationd {
namespace {

using Json = nlohmann::json;

// Of a list everything is text; these members are not. (The protocol's own tables know that too, but not by name.)
constexpr std::array<std::string_view, 7> boolean_members{"ipv4",     "ipv6",  "keep-alive", "mptcp",
                                                          "abstract", "tight", "numeric"};
constexpr std::array<std::string_view, 2> number_members{"offset", "to"};
// addr.args.N; a program's arguments.
constexpr std::size_t most_list_items = 256;

template <class Names>
bool has(const Names& names, std::string_view name) noexcept {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_uri(std::string_view word) noexcept {
  const auto colon = word.find(':');
  return colon != std::string_view::npos && colon > 0 &&
         std::all_of(word.begin(), word.begin() + static_cast<std::ptrdiff_t>(colon),
                     [](unsigned char c) { return std::isalpha(c) != 0; });
}

// "a=1,b=x,,y" into pieces; ",," is a comma.
std::vector<std::string> split_list(std::string_view word) {
  std::vector<std::string> pieces(1);
  for (std::size_t i = 0; i < word.size(); ++i) {
    if (word[i] != ',') {
      pieces.back() += word[i];
    } else if (i + 1 < word.size() && word[i + 1] == ',') {
      pieces.back() += ',';
      ++i;
    } else {
      pieces.emplace_back();
    }
  }
  return pieces;
}

Result<Json> value_of(std::string_view member, const std::string& text) {
  if (has(boolean_members, member)) {
    if (text == "on" || text == "yes" || text == "true" || text == "y") return Json(true);
    if (text == "off" || text == "no" || text == "false" || text == "n") return Json(false);
    return plan_error("'" + printable(member) + "': on or off, not '" + printable(text) + "'");
  }
  if (has(number_members, member)) {
    std::uint64_t number = 0;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (failure != std::errc() || end != text.data() + text.size()) {
      return plan_error("'" + printable(member) + "': '" + printable(text) + "' is not a number");
    }
    return Json(number);
  }
  return Json(text);
}

// Puts a value at "addr.path"; digits are places of a list.
Result<void> put(Json& object, std::string_view key, const std::string& text) {
  Json* at = &object;
  std::string_view rest = key;
  std::string_view member;
  while (true) {
    const auto dot = rest.find('.');
    member = rest.substr(0, dot);
    const bool number =
        !member.empty() && std::all_of(member.begin(), member.end(), [](char c) { return c >= '0' && c <= '9'; });
    const auto wrong = [&] { return plan_error("'" + printable(key) + "' does not suit the other keys"); };
    if (member.empty()) return plan_error("'" + printable(key) + "' is no key");
    if (number) {
      std::size_t index = 0;
      std::from_chars(member.data(), member.data() + member.size(), index);
      if (!(at->is_null() || at->is_array()) || index > at->size() || index >= most_list_items) return wrong();
      at = &(*at)[index];
    } else {
      if (!(at->is_null() || at->is_object())) return wrong();
      at = &(*at)[std::string(member)];
    }
    if (dot == std::string_view::npos) break;
    rest.remove_prefix(dot + 1);
  }
  if (at->is_structured()) return plan_error("'" + printable(key) + "' does not suit the other keys");
  MD_TRY(*at, value_of(member, text));
  return {};
}

Result<Json> parse_list(std::string_view word) {
  Json object = Json::object();
  bool first = true;
  for (const std::string& piece : split_list(word)) {
    const auto equals = piece.find('=');
    if (equals == std::string::npos) {
      if (!first) return plan_error("'" + printable(piece) + "' is neither KEY=VALUE nor a URI");
      MD_CHECK(put(object, "channel-type", piece));
    } else {
      MD_CHECK(put(object, std::string_view(piece).substr(0, equals), piece.substr(equals + 1)));
    }
    first = false;
  }
  return object;
}

Result<void> take_channel(const Json& json, IncomingWords& out) {
  auto channel = qmp::decode<qmp::MigrationChannel>(json);
  if (!channel) return plan_error(channel.error().text());
  auto address = control::address_of(*channel);
  if (!address) return plan_error(address.error().text());
  if (channel->channel_type == qmp::MigrationChannelType::cpr) {
    out.cpr = std::move(*address);
  } else {
    out.main = std::move(*address);
  }
  return {};
}

Result<void> take_word(const std::string& word, IncomingWords& out) {
  if (word == "defer") {
    out.main.reset();
    return {};
  }
  if (is_uri(word)) {
    MD_TRY(out.main, transports::parse_uri(word));
    return {};
  }
  if (word.starts_with('{')) {
    const auto json = Json::parse(word, nullptr, false);
    if (json.is_discarded()) return plan_error("not a URI and not JSON: " + printable(word));
    return take_channel(json, out);
  }
  MD_TRY(const Json json, parse_list(word));
  return take_channel(json, out);
}

}  // namespace

Result<IncomingWords> parse_incoming(std::span<const std::string> words) {
  IncomingWords out;
  for (const std::string& word : words) {
    out.waits = true;
    auto taken = take_word(word, out);
    if (!taken) return std::move(taken).error().with("--incoming");
  }
  return out;
}

}  // namespace migrationd
