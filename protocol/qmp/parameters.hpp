// SPDX-License-Identifier: Apache-2.0
//
// Migration parameters: the values with their defaults, the table that describes them, and the rules for changing
// them (qmp.md 10.2).
//
// Every parameter of QEMU 10.0 is accepted and stored; whether a feature works is said by its capability. Changes are
// all or nothing, allowed at any time; `Effect` says when a new value counts for a migration that is running. The
// wire names, types, ranges and texts are rows of one table (parameters.cpp), from which migrate-set-parameters,
// query-migrate-parameters, the HMP forms, the schema and the reference page are made.
//
// Thread: pure functions of values.
#pragma once

#include "protocol/qmp/capabilities.hpp"

#include <functional>

namespace migrationd::qmp {

enum class MultifdCompression : std::uint8_t { none, zlib, zstd };
template <>
inline constexpr auto name_table<MultifdCompression> = names_up_to(MultifdCompression::zstd, "MultiFDCompression",
                                                                   {"none", "zlib", "zstd"});

enum class MigMode : std::uint8_t { normal, cpr_reboot, cpr_transfer };
template <>
inline constexpr auto name_table<MigMode> = names_up_to(MigMode::cpr_transfer, "MigMode",
                                                        {"normal", "cpr-reboot", "cpr-transfer"});

enum class ZeroPageDetection : std::uint8_t { none, legacy, multifd };
template <>
inline constexpr auto name_table<ZeroPageDetection> = names_up_to(ZeroPageDetection::multifd, "ZeroPageDetection",
                                                                  {"none", "legacy", "multifd"});

struct BitmapTransform {
  std::optional<bool> persistent;

  static constexpr std::string_view type_name = "BitmapMigrationBitmapAliasTransform";
  static constexpr auto members() { return std::make_tuple(opt("persistent", &BitmapTransform::persistent)); }
};

struct BitmapAlias {
  std::string name;
  std::string alias;
  std::optional<BitmapTransform> transform;

  static constexpr std::string_view type_name = "BitmapMigrationBitmapAlias";
  static constexpr auto members() {
    return std::make_tuple(req("name", &BitmapAlias::name), req("alias", &BitmapAlias::alias),
                           opt("transform", &BitmapAlias::transform));
  }
};

struct BitmapNodeAlias {
  std::string node_name;
  std::string alias;
  std::vector<BitmapAlias> bitmaps;

  static constexpr std::string_view type_name = "BitmapMigrationNodeAlias";
  static constexpr auto members() {
    return std::make_tuple(req("node-name", &BitmapNodeAlias::node_name), req("alias", &BitmapNodeAlias::alias),
                           req("bitmaps", &BitmapNodeAlias::bitmaps));
  }
};

// Bytes, milliseconds, percent as the table says. Initial values are QEMU's defaults.
struct MigrationParameters {
  std::uint64_t announce_initial = 50;           // ms
  std::uint64_t announce_max = 550;              // ms
  std::uint64_t announce_rounds = 5;             // count
  std::uint64_t announce_step = 100;             // ms
  std::uint8_t throttle_trigger_threshold = 50;  // % of the bytes sent that were dirtied again
  std::uint8_t cpu_throttle_initial = 20;        // %
  std::uint8_t cpu_throttle_increment = 10;      // %
  bool cpu_throttle_tailslow = false;
  std::string tls_creds;  // id of an object; "" = no TLS
  std::string tls_hostname;
  std::string tls_authz;
  std::uint64_t max_bandwidth = 134217728;       // bytes/s; 0 = unlimited
  std::uint64_t avail_switchover_bandwidth = 0;  // bytes/s; 0 = measure
  std::uint64_t downtime_limit = 300;            // ms
  std::uint32_t x_checkpoint_delay = 20000;      // ms
  std::uint8_t multifd_channels = 2;
  std::uint64_t xbzrle_cache_size = 67108864;  // bytes
  std::uint64_t max_postcopy_bandwidth = 0;    // bytes/s; 0 = unlimited
  std::uint8_t max_cpu_throttle = 99;          // %
  MultifdCompression multifd_compression = MultifdCompression::none;
  std::uint8_t multifd_zlib_level = 1;
  std::uint8_t multifd_qatzip_level = 1;
  std::uint8_t multifd_zstd_level = 1;
  std::optional<std::vector<BitmapNodeAlias>> block_bitmap_mapping;  // unset until given
  std::uint64_t x_vcpu_dirty_limit_period = 1000;                    // ms
  std::uint64_t vcpu_dirty_limit = 1;                                // MB/s
  MigMode mode = MigMode::normal;
  ZeroPageDetection zero_page_detection = ZeroPageDetection::multifd;
  bool direct_io = false;  // counts only with mapped-ram
  // Ours.
  std::string page_sizes;           // "pc.ram=2M": what the blocks of a postcopy's destination consist of
  bool postcopy_background = true;  // false: pages go on request only
  std::uint8_t rdma_queue_pairs = 1;
  bool working_set = true;  // false: none is kept beside the file of an instant resume, and none is used
};

// Which members of a MigrationParameters were given: the argument of migrate-set-parameters.
struct ParameterPatch {
  static constexpr std::size_t max_parameters = 64;
  MigrationParameters values;
  std::bitset<max_parameters> given;  // by row of the table
};

// When a new value counts for a migration that is running (file-and-channels.md 10.1, with the latching that it
// recommends).
enum class Effect : std::uint8_t { at_once, next_migration, at_end };

// A row without its type, for people and loops.
struct ParameterRow {
  std::string_view name;
  std::string_view type;     // "size", "uint8", "uint32", "uint64", "bool", "str", "enum", "list"
  std::string_view unit;     // "ms", "bytes/second", "%", ...; may be empty
  std::string_view accepts;  // the range as a sentence fragment; empty: any value of the type
  Effect effect;
  std::string_view text;
};
std::span<const ParameterRow> parameter_table();

// `current` with the patch put in, after all range checks and the checks against the capabilities (on the *new*
// values, unlike QEMU: qmp.md 10.2), or QEMU's refusal.
QmpResult<MigrationParameters> apply(const MigrationParameters& current, const ParameterPatch& patch,
                                     const Capabilities& capabilities);

// The patch of one parameter. `text` as the human monitor takes it: units, on/off, names (qmp.md 12).
QmpResult<ParameterPatch> parse_parameter(std::string_view name, std::string_view text);
// As QMP's migrate_set_parameter takes it: a string is parsed like the human monitor's, unless the parameter itself is
// a string; another value as migrate-set-parameters would.
QmpResult<ParameterPatch> parse_parameter(std::string_view name, const Json& value);

// "NAME=SIZE[,NAME=SIZE]...", sizes powers of two from 8K to 1G. Names hold no comma.
QmpResult<std::vector<std::pair<std::string, std::uint64_t>>> parse_page_sizes(std::string_view text);

}  // namespace migrationd::qmp
