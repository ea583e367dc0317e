// SPDX-License-Identifier: Apache-2.0
//
// What the monitor's `info` commands print (qmp.md 12), from typed values. kbytes are bytes >> 10.
#include "protocol/qmp/hmp.hpp"
#include "protocol/qmp/parameter_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace migrationd::qmp {

namespace {

class Text {
 public:
  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
    out_ += "\r\n";
  }
  std::string take() && { return std::move(out_); }

 private:
  std::string out_;
};

std::string_view on_off(bool state) { return state ? "on" : "off"; }

std::string uri_of(const SocketAddress& address) {
  struct Visitor {
    std::string operator()(const InetSocketAddress& a) const {
      const bool v6 = a.host.find(':') != std::string::npos;
      return fmt::format("tcp:{}{}{}:{}", v6 ? "[" : "", a.host, v6 ? "]" : "", a.port);
    }
    std::string operator()(const UnixSocketAddress& a) const { return "unix:" + a.path; }
    std::string operator()(const VsockSocketAddress& a) const { return fmt::format("vsock:{}:{}", a.cid, a.port); }
    std::string operator()(const FdSocketAddress& a) const { return "fd:" + a.str; }
  };
  return std::visit(Visitor{}, address.u);
}

void ram_lines(Text& text, const MigrationRamStats& ram) {
  const auto kbytes = [](std::uint64_t bytes) { return bytes >> 10; };
  text.line("transferred ram: {} kbytes", kbytes(ram.transferred));
  text.line("throughput: {:.2f} mbps", ram.mbps);
  text.line("remaining ram: {} kbytes", kbytes(ram.remaining));
  text.line("total ram: {} kbytes", kbytes(ram.total));
  text.line("duplicate: {} pages", ram.duplicate);
  text.line("normal: {} pages", ram.normal);
  text.line("normal bytes: {} kbytes", kbytes(ram.normal_bytes));
  text.line("dirty sync count: {}", ram.dirty_sync_count);
  text.line("page size: {} kbytes", kbytes(ram.page_size));
  text.line("multifd bytes: {} kbytes", kbytes(ram.multifd_bytes));
  text.line("pages-per-second: {}", ram.pages_per_second);
  if (ram.dirty_pages_rate != 0) text.line("dirty pages rate: {} pages", ram.dirty_pages_rate);
  if (ram.postcopy_requests != 0) text.line("postcopy request count: {}", ram.postcopy_requests);
  if (ram.precopy_bytes != 0) text.line("precopy ram: {} kbytes", kbytes(ram.precopy_bytes));
  if (ram.downtime_bytes != 0) text.line("downtime ram: {} kbytes", kbytes(ram.downtime_bytes));
  if (ram.postcopy_bytes != 0) text.line("postcopy ram: {} kbytes", kbytes(ram.postcopy_bytes));
}

void time_lines(Text& text, const MigrationInfo& info) {
  text.line("total time: {} ms", info.total_time.value_or(0));
  if (info.expected_downtime) text.line("expected downtime: {} ms", *info.expected_downtime);
  if (info.downtime) text.line("downtime: {} ms", *info.downtime);
  if (info.setup_time) text.line("setup: {} ms", *info.setup_time);
}

// The globals of a machine that QEMU prints in front; they describe how our streams are made.
void globals(Text& text) {
  text.line("globals:");
  text.line("store-global-state: on");
  text.line("only-migratable: off");
  text.line("send-configuration: on");
  text.line("send-section-footer: on");
  text.line("send-switchover-start: on");
  text.line("clear-bitmap-shift: 18");
}

}  // namespace

std::string hmp_info_migrate(const MigrationInfo& info) {
  Text text;
  globals(text);
  if (info.blocked_reasons) {
    text.line("Outgoing migration blocked:");
    for (const auto& reason : *info.blocked_reasons) text.line("  {}", reason);
  }
  if (info.status) {
    const bool with_error = *info.status == MigrationStatus::failed && info.error_desc;
    text.line("Migration status: {}{}", to_name(*info.status),
              with_error ? fmt::format(" ({})", *info.error_desc) : "");
    time_lines(text, info);
  }
  if (info.ram) ram_lines(text, *info.ram);
  if (info.xbzrle_cache) {
    const auto& cache = *info.xbzrle_cache;
    text.line("cache size: {} bytes", cache.cache_size);
    text.line("xbzrle transferred: {} kbytes", cache.bytes >> 10);
    text.line("xbzrle pages: {} pages", cache.pages);
    text.line("xbzrle cache miss: {} pages", cache.cache_miss);
    text.line("xbzrle cache miss rate: {:.2f}", cache.cache_miss_rate);
    text.line("xbzrle encoding rate: {:.2f}", cache.encoding_rate);
    text.line("xbzrle overflow: {}", cache.overflow);
  }
  if (info.cpu_throttle_percentage) text.line("cpu throttle percentage: {}", *info.cpu_throttle_percentage);
  if (info.socket_address) {
    text.line("socket address: [");
    for (const auto& address : *info.socket_address) text.line("\t{}", uri_of(address));
    text.line("]");
  }
  if (info.postcopy_blocktime) text.line("postcopy blocktime: {}", *info.postcopy_blocktime);
  if (info.postcopy_vcpu_blocktime)
    text.line("postcopy vcpu blocktime: {}", fmt::join(*info.postcopy_vcpu_blocktime, ","));
  return std::move(text).take();
}

std::string hmp_info_capabilities(const Capabilities& capabilities) {
  Text text;
  for (const auto& row : list(capabilities)) text.line("{}: {}", to_name(row.capability), on_off(row.state));
  return std::move(text).take();
}

std::string hmp_info_parameters(const MigrationParameters& p) {
  Text text;
  text.line("announce-initial: {} ms", p.announce_initial);
  text.line("announce-max: {} ms", p.announce_max);
  text.line("announce-rounds: {}", p.announce_rounds);
  text.line("announce-step: {} ms", p.announce_step);
  text.line("throttle-trigger-threshold: {}", p.throttle_trigger_threshold);
  text.line("cpu-throttle-initial: {}", p.cpu_throttle_initial);
  text.line("cpu-throttle-increment: {}", p.cpu_throttle_increment);
  text.line("cpu-throttle-tailslow: {}", on_off(p.cpu_throttle_tailslow));
  text.line("max-cpu-throttle: {}", p.max_cpu_throttle);
  text.line("tls-creds: '{}'", p.tls_creds);
  text.line("tls-hostname: '{}'", p.tls_hostname);
  text.line("max-bandwidth: {} bytes/second", p.max_bandwidth);
  text.line("avail-switchover-bandwidth: {} bytes/second", p.avail_switchover_bandwidth);
  text.line("downtime-limit: {} ms", p.downtime_limit);
  text.line("x-checkpoint-delay: {} ms", p.x_checkpoint_delay);
  text.line("multifd-channels: {}", p.multifd_channels);
  text.line("multifd-compression: {}", to_name(p.multifd_compression));
  text.line("zero-page-detection: {}", to_name(p.zero_page_detection));
  text.line("xbzrle-cache-size: {} bytes", p.xbzrle_cache_size);
  text.line("max-postcopy-bandwidth: {}", p.max_postcopy_bandwidth);
  text.line("tls-authz: '{}'", p.tls_authz);
  text.line("x-vcpu-dirty-limit-period: {} ms", p.x_vcpu_dirty_limit_period);
  text.line("vcpu-dirty-limit: {} MB/s", p.vcpu_dirty_limit);
  text.line("mode: {}", to_name(p.mode));
  text.line("direct-io: {}", on_off(p.direct_io));
  return std::move(text).take();
}

std::string hmp_info_status(const StatusInfo& status) {
  const bool plain = status.running || status.status == RunState::paused;
  return fmt::format("VM status: {}{}\r\n", status.running ? "running" : "paused",
                     plain ? "" : fmt::format(" ({})", to_name(status.status)));
}

std::string hmp_info_version(const VersionInfo& version) {
  return fmt::format("{}.{}.{}{}\r\n", version.qemu.major, version.qemu.minor, version.qemu.micro, version.package);
}

std::string hmp_info_name(const NameInfo& name) { return name.name ? *name.name + "\r\n" : ""; }

std::string hmp_info_uuid(const UuidInfo& uuid) { return uuid.uuid + "\r\n"; }

// --- sizes ----------------------------------------------------------------------------------------------

namespace {

std::optional<unsigned> suffix_shift(char suffix) {
  switch (suffix) {
    case 'b':
    case 'B':
      return 0;
    case 'k':
    case 'K':
      return 10;
    case 'm':
    case 'M':
      return 20;
    case 'g':
    case 'G':
      return 30;
    case 't':
    case 'T':
      return 40;
    case 'p':
    case 'P':
      return 50;
    case 'e':
    case 'E':
      return 60;
    default:
      return std::nullopt;
  }
}

std::optional<std::uint64_t> multiplied(std::uint64_t value, std::uint64_t unit) {
  std::uint64_t out = 0;
  if (__builtin_mul_overflow(value, unit, &out)) return std::nullopt;
  return out;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::size_t count_digits(std::string_view text) {
  return static_cast<std::size_t>(std::find_if_not(text.begin(), text.end(), is_digit) - text.begin());
}

std::optional<std::uint64_t> hex_size(std::string_view digits, std::uint64_t unit) {
  std::uint64_t value = 0;
  const auto* end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, value, 16);
  if (digits.empty() || parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return multiplied(value, unit);
}

}  // namespace

std::optional<std::uint64_t> parse_size(std::string_view text, std::uint64_t default_unit) {
  if (text.starts_with("0x") || text.starts_with("0X")) return hex_size(text.substr(2), default_unit);
  const auto whole_digits = count_digits(text);
  if (whole_digits == 0) return std::nullopt;
  std::uint64_t whole = 0;
  if (std::from_chars(text.data(), text.data() + whole_digits, whole).ec != std::errc()) return std::nullopt;
  text.remove_prefix(whole_digits);
  double fraction = 0;
  if (text.starts_with('.')) {
    const auto digits = count_digits(text.substr(1));
    double place = 0.1;
    for (const char digit : text.substr(1, digits)) {
      fraction += place * (digit - '0');
      place /= 10;
    }
    text.remove_prefix(1 + digits);
  }
  auto unit = default_unit;
  if (!text.empty()) {
    const auto shift = suffix_shift(text.front());
    if (!shift || text.size() > 1) return std::nullopt;
    unit = std::uint64_t{1} << *shift;
  }
  if (fraction > 0 && unit == 1) return std::nullopt;  // no part of a byte
  const auto bytes = multiplied(whole, unit);
  std::uint64_t sum = 0;
  const auto part = static_cast<std::uint64_t>(fraction * static_cast<double>(unit));
  if (!bytes || __builtin_add_overflow(*bytes, part, &sum)) return std::nullopt;
  return sum;
}

}  // namespace migrationd::qmp
