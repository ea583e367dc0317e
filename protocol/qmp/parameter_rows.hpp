// SPDX-License-Identifier: Apache-2.0
//
// The table of migration parameters: the one place that knows their wire names, ranges, texts and effects
// (qmp.md 10.2, file-and-channels.md 10). Included where a loop over the typed rows is needed; others use
// parameters.hpp.
#pragma once

#include "protocol/qmp/parameters.hpp"

#include <tuple>
#include <type_traits>

namespace migrationd::qmp {

// How the human monitor reads a number: bandwidths count in MiB unless they have a suffix, other 64-bit numbers in
// bytes (or whatever the unit is) with suffixes allowed, small ones are plain integers.
enum class HmpNumber : std::uint8_t { plain, suffixed, bandwidth };

template <class T>
struct TypedParameter {
  using Type = T;
  std::string_view name;
  T MigrationParameters::*pointer;
  std::string_view type;
  std::string_view unit;
  // What comes after "expects" when the value is refused, and the rule itself; null: any value of the type.
  std::string_view accepts;
  bool (*valid)(const MigrationParameters&);
  Effect effect;
  HmpNumber hmp = HmpNumber::plain;
  std::string_view text = {};
  Stability stability = Stability::stable;
};

namespace detail {

template <auto Pointer, std::uint64_t Min, std::uint64_t Max>
bool in_range(const MigrationParameters& p) {
  return p.*Pointer >= Min && p.*Pointer <= Max;
}

inline bool power_of_two_of_pages(const MigrationParameters& p) {
  constexpr std::uint64_t target_page = 4096;
  return p.xbzrle_cache_size >= target_page && (p.xbzrle_cache_size & (p.xbzrle_cache_size - 1)) == 0;
}

inline bool between_initial_and_99(const MigrationParameters& p) {
  return p.max_cpu_throttle >= p.cpu_throttle_initial && p.max_cpu_throttle <= 99;
}

constexpr auto make_parameter_rows() {
  using P = MigrationParameters;
  constexpr auto u64 = [](std::string_view name, std::uint64_t P::*pointer, std::string_view type,
                          std::string_view unit, std::string_view accepts, bool (*valid)(const P&), Effect effect,
                          std::string_view text, HmpNumber hmp = HmpNumber::suffixed) {
    return TypedParameter<std::uint64_t>{name, pointer, type, unit, accepts, valid, effect, hmp, text};
  };
  constexpr auto u8 = [](std::string_view name, std::uint8_t P::*pointer, std::string_view unit,
                         std::string_view accepts, bool (*valid)(const P&), Effect effect, std::string_view text) {
    return TypedParameter<std::uint8_t>{name, pointer, "uint8", unit, accepts, valid, effect, HmpNumber::plain, text};
  };
  constexpr auto str = [](std::string_view name, std::string P::*pointer, std::string_view text) {
    return TypedParameter<std::string>{name, pointer, "str", "", "", nullptr, Effect::next_migration, HmpNumber::plain,
                                       text};
  };
  constexpr auto now = Effect::at_once;
  constexpr auto next = Effect::next_migration;
  constexpr auto end = Effect::at_end;
  auto checkpoint = TypedParameter<std::uint32_t>{
      "x-checkpoint-delay", &P::x_checkpoint_delay,           "uint32",           "ms", "", nullptr, now,
      HmpNumber::plain,     "COLO: time between checkpoints", Stability::unstable};
  auto period =
      u64("x-vcpu-dirty-limit-period", &P::x_vcpu_dirty_limit_period, "uint64", "ms", "a value between 1 and 1000",
          in_range<&P::x_vcpu_dirty_limit_period, 1, 1000>, now, "how often the dirty rate of a vCPU is looked at");
  period.stability = Stability::unstable;
  constexpr auto page_sizes = TypedParameter<std::string>{
      "__org.migrationd_postcopy-page-sizes",
      &P::page_sizes,
      "str",
      "",
      "BLOCK=SIZE[,BLOCK=SIZE]...",
      [](const P& p) { return static_cast<bool>(parse_page_sizes(p.page_sizes)); },
      next,
      HmpNumber::plain,
      "what the memory of a postcopy's destination consists of, where it is not pages of 4K"};
  return std::make_tuple(
      u64("announce-initial", &P::announce_initial, "size", "ms", "a value between 0 and 100000",
          in_range<&P::announce_initial, 0, 100000>, end, "wait before the first self-announcement"),
      u64("announce-max", &P::announce_max, "size", "ms", "a value between 0 and 100000",
          in_range<&P::announce_max, 0, 100000>, end, "longest wait between self-announcements"),
      u64("announce-rounds", &P::announce_rounds, "size", "", "a value between 0 and 1000",
          in_range<&P::announce_rounds, 0, 1000>, end, "number of self-announcements"),
      u64("announce-step", &P::announce_step, "size", "ms", "a value between 0 and 10000",
          in_range<&P::announce_step, 1, 10000>, end, "by how much the wait grows; 0 is refused as QEMU does"),
      u8("throttle-trigger-threshold", &P::throttle_trigger_threshold, "%", "an integer in the range of 1 to 100",
         in_range<&P::throttle_trigger_threshold, 1, 100>, now,
         "throttle when more than this share of what was sent was dirtied meanwhile"),
      u8("cpu-throttle-initial", &P::cpu_throttle_initial, "%", "an integer in the range of 1 to 99",
         in_range<&P::cpu_throttle_initial, 1, 99>, now, "auto-converge: first throttle"),
      u8("cpu-throttle-increment", &P::cpu_throttle_increment, "%", "an integer in the range of 1 to 99",
         in_range<&P::cpu_throttle_increment, 1, 99>, now, "auto-converge: added per pass"),
      TypedParameter<bool>{"cpu-throttle-tailslow", &P::cpu_throttle_tailslow, "bool", "", "", nullptr, now,
                           HmpNumber::plain, "auto-converge: smaller steps at the end"},
      str("tls-creds", &P::tls_creds, "id of the TLS credentials; empty: no TLS"),
      str("tls-hostname", &P::tls_hostname, "name the peer's certificate must have"),
      str("tls-authz", &P::tls_authz, "id of the authorization of the peer's name"),
      u64("max-bandwidth", &P::max_bandwidth, "size", "bytes/second", "", nullptr, now,
          "highest rate of precopy; 0: no limit", HmpNumber::bandwidth),
      u64("avail-switchover-bandwidth", &P::avail_switchover_bandwidth, "size", "bytes/second", "", nullptr, now,
          "rate assumed for the switchover; 0: as measured", HmpNumber::bandwidth),
      u64("downtime-limit", &P::downtime_limit, "uint64", "ms", "an integer in the range of 0 to (2000 * 1000) ms",
          in_range<&P::downtime_limit, 0, 2000000>, now, "longest downtime that may be planned"),
      checkpoint,
      u8("multifd-channels", &P::multifd_channels, "", "a value between 1 and 255",
         in_range<&P::multifd_channels, 1, 255>, next, "parallel channels with capability multifd"),
      u64("xbzrle-cache-size", &P::xbzrle_cache_size, "size", "bytes",
          "a power of two no less than the target page size", power_of_two_of_pages, now, "cache of pages sent"),
      u64("max-postcopy-bandwidth", &P::max_postcopy_bandwidth, "size", "bytes/second", "", nullptr, now,
          "highest rate of background pages in postcopy; 0: no limit"),
      u8("max-cpu-throttle", &P::max_cpu_throttle, "%", "an integer in the range of cpu_throttle_initial to 99",
         between_initial_and_99, now, "auto-converge: highest throttle"),
      TypedParameter<MultifdCompression>{"multifd-compression", &P::multifd_compression, "enum", "", "", nullptr, next,
                                         HmpNumber::plain, "how multifd packets are compressed"},
      u8("multifd-zlib-level", &P::multifd_zlib_level, "", "a value between 0 and 9",
         in_range<&P::multifd_zlib_level, 0, 9>, next, "0 none ... 9 best"),
      u8("multifd-qatzip-level", &P::multifd_qatzip_level, "", "a value between 1 and 9",
         in_range<&P::multifd_qatzip_level, 1, 9>, next, "stored only"),
      u8("multifd-zstd-level", &P::multifd_zstd_level, "", "a value between 0 and 20",
         in_range<&P::multifd_zstd_level, 0, 20>, next, "0 default ... 20 best"),
      TypedParameter<std::optional<std::vector<BitmapNodeAlias>>>{"block-bitmap-mapping", &P::block_bitmap_mapping,
                                                                  "list", "", "", nullptr, next, HmpNumber::plain,
                                                                  "names of dirty bitmaps on the wire; stored only"},
      period,
      u64("vcpu-dirty-limit", &P::vcpu_dirty_limit, "uint64", "MB/s", "at least 1",
          in_range<&P::vcpu_dirty_limit, 1, UINT64_MAX>, now, "dirty-limit: bound per vCPU"),
      TypedParameter<MigMode>{"mode", &P::mode, "enum", "", "", nullptr, next, HmpNumber::plain,
                              "only normal can be migrated in; the others are stored"},
      TypedParameter<ZeroPageDetection>{"zero-page-detection", &P::zero_page_detection, "enum", "", "", nullptr, next,
                                        HmpNumber::plain, "which thread looks for zero pages"},
      TypedParameter<bool>{"direct-io", &P::direct_io, "bool", "", "", nullptr, next, HmpNumber::plain,
                           "bypass the page cache; counts only with mapped-ram"},
      page_sizes,
      TypedParameter<bool>{"__org.migrationd_postcopy-background", &P::postcopy_background, "bool", "", "", nullptr,
                           now, HmpNumber::plain, "off: a postcopy sends the pages that are asked for, and no others"},
      TypedParameter<bool>{"__org.migrationd_working-set", &P::working_set, "bool", "", "", nullptr, next,
                           HmpNumber::plain,
                           "instant resume keeps the order of requests beside the file, and sends those pages first"},
      u8("__org.migrationd_rdma-queue-pairs", &P::rdma_queue_pairs, "", "a value between 1 and 16",
         in_range<&P::rdma_queue_pairs, 1, 16>, next,
         "queue pairs for pages with rdma:, between two daemons of this kind; others use one"));
}

}  // namespace detail

inline constexpr auto parameter_rows = detail::make_parameter_rows();
inline constexpr std::size_t parameter_count = std::tuple_size_v<decltype(parameter_rows)>;
static_assert(parameter_count <= ParameterPatch::max_parameters);

// f(row, index) for each row, until one returns false.
template <class F>
bool all_parameters(F&& f) {
  std::size_t index = 0;
  return std::apply([&](const auto&... row) { return (f(row, index++) && ...); }, parameter_rows);
}

}  // namespace migrationd::qmp
