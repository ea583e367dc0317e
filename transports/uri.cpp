// SPDX-License-Identifier: Apache-2.0
//
// URI syntax of migration addresses (file-and-channels.md 5.1). The texts are QEMU's; where QEMU's parser takes
// more than it should (a `to=` that does not fit 16 bits, a port that is cut at 32 characters) ours refuses with
// the text of the same family.
#include "transports/address.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

namespace migrationd::transports {

namespace {

constexpr std::size_t max_host = 64;
constexpr std::size_t max_port = 32;

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

// What follows ",name" in `options`, up to the end of the string (QEMU shows it all in its error).
std::optional<std::string_view> find_option(std::string_view options, std::string_view name) {
  const std::string key = fmt::format(",{}", name);
  const auto at = options.find(key);
  if (at == std::string_view::npos) return std::nullopt;
  return options.substr(at + key.size());
}

Result<std::optional<bool>> parse_flag(std::string_view options, std::string_view name) {
  const auto rest = find_option(options, name);
  if (!rest) return std::optional<bool>();
  const std::string_view value = rest->substr(0, rest->find(','));
  if (value.empty() || value == "=on") return std::optional<bool>(true);
  if (value == "=off") return std::optional<bool>(false);
  return plan_error(fmt::format("error parsing '{}' flag '{}'", name, printable(*rest, printable_address_bytes)));
}

Result<std::optional<std::uint16_t>> parse_to(std::string_view options) {
  const auto rest = find_option(options, "to=");
  if (!rest) return std::optional<std::uint16_t>();
  const std::string_view value = rest->substr(0, rest->find(','));
  std::uint16_t number = 0;
  const auto [end, failure] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (failure != std::errc() || end != value.data() + value.size()) return plan_error("error parsing to= argument");
  return std::optional<std::uint16_t>(number);
}

struct HostAndPort {
  std::string_view host;
  std::string_view port;
  std::string_view options;  // empty or from the first comma on
};

// The three shapes have a text each: ":PORT", "[HOST]:PORT", "HOST:PORT".
Result<HostAndPort> split_inet(std::string_view text) {
  HostAndPort out;
  std::string_view rest;
  const char* complaint = "error parsing address '{}'";
  if (text.starts_with(':')) {
    complaint = "error parsing port in address '{}'";
    rest = text.substr(1);
  } else if (text.starts_with('[')) {
    complaint = "error parsing IPv6 address '{}'";
    const auto close = text.find(']');
    if (close != std::string_view::npos && close > 1) {
      out.host = text.substr(1, close - 1);
      rest = text.substr(close + 1);
      if (!take_prefix(rest, ":")) rest = {};
    }
  } else {
    const auto colon = text.find(':');
    if (colon != std::string_view::npos) {
      out.host = text.substr(0, colon);
      rest = text.substr(colon + 1);
    }
  }
  const auto comma = std::min(rest.find(','), rest.size());
  out.port = rest.substr(0, comma);
  out.options = rest.substr(comma);
  if (out.port.empty() || out.port.size() > max_port || out.host.size() > max_host)
    return plan_error(fmt::format(fmt::runtime(complaint), printable(text, printable_address_bytes)));
  return out;
}

Result<InetAddress> parse_inet(std::string_view text) {
  MD_TRY(const HostAndPort parts, split_inet(text));
  InetAddress out;
  out.host = parts.host;
  out.port = parts.port;
  MD_TRY(out.to, parse_to(parts.options));
  MD_TRY(out.ipv4, parse_flag(parts.options, "ipv4"));
  MD_TRY(out.ipv6, parse_flag(parts.options, "ipv6"));
  MD_TRY(const auto keep_alive, parse_flag(parts.options, "keep-alive"));
  MD_TRY(const auto mptcp, parse_flag(parts.options, "mptcp"));
  out.keep_alive = keep_alive.value_or(false);
  out.mptcp = mptcp.value_or(false);
  return out;
}

Result<Address> parse_vsock(std::string_view text) {
  const auto colon = text.find(':');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == text.size())
    return plan_error(fmt::format("error parsing address '{}'", printable(text, printable_address_bytes)));
  const std::string_view port = text.substr(colon + 1);
  if (port.find(',') != std::string_view::npos)
    return plan_error(fmt::format("trailing characters in address '{}'", printable(text, printable_address_bytes)));
  return Address(VsockAddress{std::string(text.substr(0, colon)), std::string(port)});
}

// 1 for none and B, 1024^n for K M G T P E, 0 for anything else.
std::uint64_t unit_of(std::string_view suffix) {
  if (suffix.empty()) return 1;
  if (suffix.size() != 1) return 0;
  constexpr std::string_view units = "BKMGTPE";
  const char upper = suffix[0] >= 'a' && suffix[0] <= 'z' ? static_cast<char>(suffix[0] - 'a' + 'A') : suffix[0];
  const auto at = units.find(upper);
  return at == std::string_view::npos ? 0 : std::uint64_t{1} << (10 * at);
}

enum class SizeError { none, invalid, range };

SizeError parse_hex(std::string_view digits, std::uint64_t& out) {
  const auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), out, 16);
  if (failure == std::errc::result_out_of_range) return SizeError::range;
  return failure == std::errc() && end == digits.data() + digits.size() ? SizeError::none : SizeError::invalid;
}

// A decimal with an optional fraction and suffix, or 0x and hex digits. The fraction is added in floating point:
// it is below one unit, and every unit is at most 2^60, so only bits below a byte are lost.
SizeError parse_size(std::string_view text, std::uint64_t& out) {
  if (text.starts_with("0x") || text.starts_with("0X")) return parse_hex(text.substr(2), out);
  const bool negative = take_prefix(text, "-");
  const char* const last = text.data() + text.size();
  std::uint64_t whole = 0;
  const auto [whole_end, failure] = std::from_chars(text.data(), last, whole);
  if (failure == std::errc::invalid_argument) return SizeError::invalid;
  std::string_view rest(whole_end, static_cast<std::size_t>(last - whole_end));
  double fraction = 0;
  if (take_prefix(rest, ".")) {
    double place = 0.1;
    for (; !rest.empty() && rest[0] >= '0' && rest[0] <= '9'; rest.remove_prefix(1), place /= 10)
      fraction += place * (rest[0] - '0');
  }
  const std::uint64_t unit = unit_of(rest);
  if (unit == 0 || (unit == 1 && fraction > 0)) return SizeError::invalid;
  if (negative || failure == std::errc::result_out_of_range) return SizeError::range;
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(whole, unit, &bytes)) return SizeError::range;
  const auto part = static_cast<std::uint64_t>(fraction * static_cast<double>(unit));
  if (__builtin_add_overflow(bytes, part, &out)) return SizeError::range;
  // lseek and ftruncate take a signed offset.
  return out > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) ? SizeError::range
                                                                                    : SizeError::none;
}

Result<Address> parse_file(std::string_view text) {
  constexpr std::string_view key = ",offset=";
  FileAddress out;
  const auto at = text.find(key);
  out.path = text.substr(0, at);
  if (at == std::string_view::npos) return Address(std::move(out));
  const std::string_view size = text.substr(at + key.size());
  const SizeError failure = parse_size(size, out.offset);
  if (failure == SizeError::none) return Address(std::move(out));
  return plan_error(fmt::format("file URI has bad offset {}: {}", printable(size, printable_address_bytes),
                                failure == SizeError::range ? "Numerical result out of range" : "Invalid argument"));
}

std::string inet_text(std::string_view scheme, const InetAddress& inet) {
  const bool brackets = inet.host.find(':') != std::string::npos;
  std::string out = brackets ? fmt::format("{}:[{}]:{}", scheme, inet.host, inet.port)
                             : fmt::format("{}:{}:{}", scheme, inet.host, inet.port);
  if (inet.to) out += fmt::format(",to={}", *inet.to);
  return out;
}

struct ToText {
  std::string operator()(const InetAddress& inet) const { return inet_text("tcp", inet); }
  std::string operator()(const RdmaAddress& rdma) const { return inet_text("rdma", rdma.inet); }
  std::string operator()(const UnixAddress& local) const {
    return fmt::format("unix:{}{}", local.abstract ? "@" : "", local.path);
  }
  std::string operator()(const VsockAddress& vsock) const { return fmt::format("vsock:{}:{}", vsock.cid, vsock.port); }
  std::string operator()(const FdAddress& fd) const { return fmt::format("fd:{}", fd.name); }
  std::string operator()(const FileAddress& file) const {
    return file.offset == 0 ? fmt::format("file:{}", file.path)
                            : fmt::format("file:{},offset={}", file.path, hex(file.offset));
  }
  std::string operator()(const ExecAddress& exec) const {
    const bool shell = exec.argv.size() == 3 && exec.argv[0] == "/bin/sh" && exec.argv[1] == "-c";
    return fmt::format("exec:{}", shell ? exec.argv[2] : fmt::format("{}", fmt::join(exec.argv, " ")));
  }
};

}  // namespace

Result<Address> parse_uri(std::string_view uri) {
  std::string_view rest = uri;
  if (take_prefix(rest, "tcp:")) {
    MD_TRY(InetAddress inet, parse_inet(rest));
    return Address(std::move(inet));
  }
  if (take_prefix(rest, "unix:")) {
    if (rest.empty()) return plan_error("invalid Unix socket address");
    return Address(UnixAddress{std::string(rest)});
  }
  if (take_prefix(rest, "vsock:")) return parse_vsock(rest);
  if (take_prefix(rest, "fd:")) {
    if (rest.empty()) return plan_error("invalid file descriptor address");
    return Address(FdAddress{std::string(rest)});
  }
  if (take_prefix(rest, "exec:")) return Address(ExecAddress{{"/bin/sh", "-c", std::string(rest)}});
  if (take_prefix(rest, "file:")) return parse_file(rest);
  if (take_prefix(rest, "rdma:")) {
    MD_TRY(InetAddress inet, parse_inet(rest));
    return Address(RdmaAddress{std::move(inet)});
  }
  return plan_error(fmt::format("unknown migration protocol: {}", printable(uri, printable_address_bytes)));
}

std::string to_string(const Address& address) {
  return printable(std::visit(ToText{}, address), printable_address_bytes);
}

}  // namespace migrationd::transports
