// SPDX-License-Identifier: Apache-2.0
// Capabilities and parameters: defaults, ranges, combinations.
#include "protocol/qmp/decode.hpp"
#include "protocol/qmp/parameter_codec.hpp"
#include "protocol/qmp/parameters.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;
using namespace migrationd::qmp;
using C = Capability;

namespace {

// The parameters after `json`, or the refusal.
QmpResult<MigrationParameters> set(const MigrationParameters& current, std::string_view json,
                                   const Capabilities& capabilities = {}) {
  const auto patch = decode<ParameterPatch>(Json::parse(json));
  if (!patch) return patch.error();
  return apply(current, *patch, capabilities);
}

std::string verdict(std::string_view json, const Capabilities& capabilities = {}) {
  const auto result = set({}, json, capabilities);
  return result.has_value() ? "ok" : result.error().text();
}

std::string combination(std::initializer_list<C> wanted, const MigrationParameters& parameters = {},
                        const CapabilityContext& context = {}) {
  Capabilities set;
  for (const auto capability : wanted) set.set(capability);
  const auto result = check_combination({}, set, parameters, context);
  return result.has_value() ? "ok" : result.error().text();
}

std::string hmp(std::string_view name, std::string_view text) {
  const auto patch = parse_parameter(name, text);
  return patch.has_value() ? "ok" : patch.error().text();
}

std::string switched(C capability, bool state, const Capabilities& current = {},
                     const CapabilityContext& context = {}) {
  const std::vector<MigrationCapabilityStatus> changes{{capability, state}};
  const auto result = apply(current, changes, {}, context);
  return result.has_value() ? "ok" : result.error().text();
}

}  // namespace

TEST_CASE("Parameters.have_qemus_defaults_and_all_but_the_mapping_are_shown") {
  const auto shown = encode_object(MigrationParameters{});
  CHECK(shown.size() == parameter_table().size() - 1);
  CHECK_FALSE(shown.contains("block-bitmap-mapping"));
  const auto expected = OrderedJson::parse(R"({
    "announce-initial": 50, "announce-max": 550, "announce-rounds": 5, "announce-step": 100,
    "throttle-trigger-threshold": 50, "cpu-throttle-initial": 20, "cpu-throttle-increment": 10,
    "cpu-throttle-tailslow": false, "tls-creds": "", "tls-hostname": "", "tls-authz": "",
    "max-bandwidth": 134217728, "avail-switchover-bandwidth": 0, "downtime-limit": 300, "x-checkpoint-delay": 20000,
    "multifd-channels": 2, "xbzrle-cache-size": 67108864, "max-postcopy-bandwidth": 0, "max-cpu-throttle": 99,
    "multifd-compression": "none", "multifd-zlib-level": 1, "multifd-qatzip-level": 1, "multifd-zstd-level": 1,
    "x-vcpu-dirty-limit-period": 1000, "vcpu-dirty-limit": 1, "mode": "normal", "zero-page-detection": "multifd",
    "direct-io": false, "__org.migrationd_postcopy-page-sizes": "", "__org.migrationd_postcopy-background": true,
    "__org.migrationd_working-set": true, "__org.migrationd_rdma-queue-pairs": 1})");
  CHECK(shown == expected);
  // What is reported is accepted back: libvirt writes everything it has read.
  CHECK(verdict(shown.dump()) == "ok");
}

TEST_CASE("Parameters.refuse_values_out_of_range_in_qemus_words") {
  const std::vector<std::pair<std::string_view, std::string_view>> table = {
      {R"({"announce-initial":100000})", "ok"},
      {R"({"announce-initial":100001})", "Parameter 'announce_initial' expects a value between 0 and 100000"},
      {R"({"announce-max":100001})", "Parameter 'announce_max' expects a value between 0 and 100000"},
      {R"({"announce-rounds":1001})", "Parameter 'announce_rounds' expects a value between 0 and 1000"},
      {R"({"announce-step":0})", "Parameter 'announce_step' expects a value between 0 and 10000"},
      {R"({"announce-step":10000})", "ok"},
      {R"({"throttle-trigger-threshold":0})",
       "Parameter 'throttle_trigger_threshold' expects an integer in the range of 1 to 100"},
      {R"({"cpu-throttle-initial":100})",
       "Parameter 'cpu_throttle_initial' expects an integer in the range of 1 to 99"},
      {R"({"cpu-throttle-increment":0})",
       "Parameter 'cpu_throttle_increment' expects an integer in the range of 1 to 99"},
      {R"({"max-cpu-throttle":19})",
       "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99"},
      {R"({"max-cpu-throttle":100})",
       "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99"},
      {R"({"max-cpu-throttle":30,"cpu-throttle-initial":40})",
       "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99"},
      {R"({"downtime-limit":2000000})", "ok"},
      {R"({"downtime-limit":2000001})",
       "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms"},
      {R"({"downtime-limit":-1})",
       "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms"},
      {R"({"multifd-channels":0})", "Parameter 'multifd_channels' expects a value between 1 and 255"},
      {R"({"multifd-zlib-level":10})", "Parameter 'multifd_zlib_level' expects a value between 0 and 9"},
      {R"({"multifd-qatzip-level":0})", "Parameter 'multifd_qatzip_level' expects a value between 1 and 9"},
      {R"({"multifd-zstd-level":21})", "Parameter 'multifd_zstd_level' expects a value between 0 and 20"},
      {R"({"xbzrle-cache-size":4096})", "ok"},
      {R"({"xbzrle-cache-size":2048})",
       "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size"},
      {R"({"xbzrle-cache-size":12288})",
       "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size"},
      {R"({"x-vcpu-dirty-limit-period":1001})",
       "Parameter 'x-vcpu-dirty-limit-period' expects a value between 1 and 1000"},
      {R"({"vcpu-dirty-limit":0})", "Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s"},
      {R"({"block-bitmap-mapping":[{"node-name":"n","alias":"a","bitmaps":[]},{"node-name":"n","alias":"b","bitmaps":[]}]})",
       "Invalid mapping given for block-bitmap-mapping: The node name 'n' is mapped twice"},
      {R"({"block-bitmap-mapping":[{"node-name":"n","alias":"a","bitmaps":[]},{"node-name":"m","alias":"a","bitmaps":[]}]})",
       "Invalid mapping given for block-bitmap-mapping: The node alias 'a' is used twice"},
      {R"({"block-bitmap-mapping":[{"node-name":"n","alias":"","bitmaps":[]}]})",
       "Invalid mapping given for block-bitmap-mapping: The node alias '' is not well-formed"},
  };
  for (const auto& [json, expected] : table) {
    INFO(json);
    CHECK(verdict(json) == expected);
  }
}

TEST_CASE("Parameters.change_all_or_nothing_and_keep_the_rest") {
  const auto changed = set({}, R"({"max-bandwidth":-1,"tls-creds":null,"mode":"cpr-reboot"})");
  REQUIRE(changed.has_value());
  CHECK(changed->max_bandwidth == UINT64_MAX);
  CHECK(changed->mode == MigMode::cpr_reboot);
  CHECK(changed->downtime_limit == 300);
  const auto again = set(*changed, R"({"downtime-limit":7})");
  REQUIRE(again.has_value());
  CHECK(again->max_bandwidth == UINT64_MAX);
  CHECK(again->downtime_limit == 7);
}

TEST_CASE("Parameters.are_checked_against_the_capabilities_with_their_new_values") {
  Capabilities mapped;
  mapped.set(C::mapped_ram);
  const std::string refusal = "Mapped-ram only available for non-compressed non-TLS multifd migration";
  CHECK(verdict(R"({"multifd-compression":"zstd"})", mapped) == refusal);
  CHECK(verdict(R"({"tls-creds":"t"})", mapped) == refusal);
  CHECK(verdict("{}", mapped) == "ok");
  // The call that mends matters is accepted.
  MigrationParameters compressed;
  compressed.multifd_compression = MultifdCompression::zlib;
  CHECK(set(compressed, "{}", mapped).has_error());
  CHECK(set(compressed, R"({"multifd-compression":"none"})", mapped).has_value());
  Capabilities zero_copy;
  zero_copy.set(C::zero_copy_send);
  CHECK(verdict(R"({"tls-creds":"t"})", zero_copy) ==
        "Zero copy only available for non-compressed non-TLS multifd migration");
}

TEST_CASE("Parameters.are_read_as_the_human_monitor_gives_them") {
  const auto value = [](std::string_view name, std::string_view text) {
    const auto patch = parse_parameter(name, text);
    REQUIRE(patch.has_value());
    CHECK(patch->given.count() == 1);
    return patch->values;
  };
  CHECK(value("max-bandwidth", "5").max_bandwidth == 5U << 20);
  CHECK(value("max-bandwidth", "5k").max_bandwidth == 5120);
  CHECK(value("max-bandwidth", "5b").max_bandwidth == 5);
  CHECK(value("max-bandwidth", "1G").max_bandwidth == 1U << 30);
  CHECK(value("max-bandwidth", "1.5").max_bandwidth == 1572864);
  CHECK(value("max-bandwidth", "1.1k").max_bandwidth == 1126);
  CHECK(value("max-bandwidth", "0x10").max_bandwidth == 16777216);
  CHECK(value("downtime-limit", "1k").downtime_limit == 1024);
  CHECK(value("downtime-limit", "0x10").downtime_limit == 16);
  CHECK(value("xbzrle-cache-size", "1M").xbzrle_cache_size == 1U << 20);
  CHECK(value("multifd-channels", "0x10").multifd_channels == 16);
  CHECK(value("cpu-throttle-tailslow", "yes").cpu_throttle_tailslow);
  CHECK(value("multifd-compression", "zlib").multifd_compression == MultifdCompression::zlib);
  CHECK(value("tls-creds", "a b").tls_creds == "a b");
  for (const auto* bad : {"abc", "-1", "5MiB", "1e3", "8E", "16E", "1.5.5", "", "1.5B"}) {
    INFO(bad);
    CHECK(hmp("max-bandwidth", bad) == "Invalid size " + std::string(bad));
  }
  CHECK(hmp("downtime-limit", "abc") ==
        "Parameter 'downtime-limit' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means "
        "kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.");
  CHECK(hmp("multifd-channels", "x") == "Parameter 'multifd-channels' expects uint64");
  CHECK(hmp("multifd-channels", "4k") == "Parameter 'multifd-channels' expects uint64");
  CHECK(hmp("multifd-channels", "300") == "Parameter 'multifd-channels' expects uint8_t");
  CHECK(hmp("multifd-channels", "-1") == "Parameter 'multifd-channels' expects uint8_t");
  CHECK(hmp("multifd-compression", "foo") == "Parameter 'multifd-compression' does not accept value 'foo'");
  CHECK(hmp("direct-io", "maybe") == "Parameter 'direct-io' expects 'on' or 'off'");
  CHECK(hmp("block-bitmap-mapping", "x") == "The block-bitmap-mapping parameter can only be set through QMP");
  CHECK(hmp("bogus", "1") == "invalid parameter value: bogus");
}

TEST_CASE("Parameters.are_taken_one_by_one_from_json_too") {
  const auto number = parse_parameter("max-bandwidth", Json(1000));
  REQUIRE(number.has_value());
  CHECK(number->values.max_bandwidth == 1000);
  const auto text = parse_parameter("max-bandwidth", Json("1"));
  REQUIRE(text.has_value());
  CHECK(text->values.max_bandwidth == 1048576);
  const auto null = parse_parameter("tls-creds", Json(nullptr));
  REQUIRE(null.has_value());
  CHECK(parse_parameter("bogus", Json(1)).error().text() == "invalid parameter value: bogus");
  CHECK(parse_parameter("multifd-channels", Json(300)).error().text() ==
        "Parameter 'multifd-channels' expects uint8_t");
}

TEST_CASE("Capabilities.are_all_off_and_listed_in_qemus_order_with_ours_behind") {
  const auto all = list({});
  REQUIRE(all.size() == 24);
  CHECK(to_name(all[0].capability) == "xbzrle");
  CHECK(to_name(all[21].capability) == "mapped-ram");
  CHECK(to_name(all[22].capability) == "__org.migrationd_skip-holes");
  CHECK(to_name(all[23].capability) == "__org.migrationd_instant-resume");
  for (const auto& row : all) CHECK_FALSE(row.state);
}

TEST_CASE("Capabilities.refuse_combinations_in_qemus_words") {
  CHECK(combination({C::postcopy_ram, C::x_ignore_shared}) == "Postcopy is not compatible with ignore-shared");
  CHECK(combination({C::postcopy_ram, C::multifd}) == "Postcopy is not yet compatible with multifd");
  CHECK(combination({C::multifd, C::xbzrle}) == "Multifd is not compatible with xbzrle");
  CHECK(combination({C::mapped_ram, C::xbzrle}) == "Mapped-ram migration is incompatible with xbzrle");
  CHECK(combination({C::mapped_ram, C::postcopy_ram}) == "Mapped-ram migration is incompatible with postcopy");
  CHECK(combination({C::postcopy_preempt}) == "Postcopy preempt requires postcopy-ram");
  CHECK(combination({C::switchover_ack}) == "Capability 'switchover-ack' requires capability 'return-path'");
  CHECK(combination({C::switchover_ack, C::return_path}) == "ok");
  CHECK(combination({C::dirty_limit, C::auto_converge}) ==
        "dirty-limit conflicts with auto-converge either of then available currently");
  CHECK(combination({C::dirty_limit}) == "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set");
  const std::string zero_copy = "Zero copy only available for non-compressed non-TLS multifd migration";
  CHECK(combination({C::zero_copy_send}) == zero_copy);
  CHECK(combination({C::zero_copy_send, C::multifd}) == "ok");
  MigrationParameters tls;
  tls.tls_creds = "t";
  CHECK(combination({C::zero_copy_send, C::multifd}, tls) == zero_copy);
  CapabilityContext started;
  started.incoming_started = true;
  CHECK(combination({C::multifd}, {}, started) == "Multifd must be set before incoming starts");
  CHECK(combination({C::postcopy_ram, C::postcopy_preempt}, {}, started) ==
        "Postcopy preempt must be set before incoming starts");
}

TEST_CASE("Capabilities.exclude_background_snapshot_from_the_same_fourteen") {
  int refused = 0;
  for (const auto& row : capability_table()) {
    if (row.capability == C::background_snapshot) continue;
    const auto said = combination({C::background_snapshot, row.capability});
    refused += said.starts_with("Background-snapshot is not compatible with ");
  }
  CHECK(refused == 14);
  CHECK(combination({C::background_snapshot, C::xbzrle, C::multifd}) ==
        "Background-snapshot is not compatible with multifd");
}

TEST_CASE("Capabilities.that_are_not_built_in_are_refused_by_name_and_can_always_be_switched_off") {
  for (const auto& row : capability_table()) {
    INFO(to_name(row.capability));
    CHECK(switched(row.capability, false) == "ok");
    const auto said = switched(row.capability, true);
    const bool needs_another = row.capability == C::switchover_ack || row.capability == C::zero_copy_send ||
                               row.capability == C::postcopy_preempt;
    if (row.available && !needs_another) CHECK(said == "ok");
    if (!row.available) CHECK(said != "ok");
  }
  CHECK(switched(C::release_ram, true) == "Capability 'release-ram' is not available in this build");
}

TEST_CASE("Capabilities.take_libvirts_whole_list_at_once") {
  // migrate-set-capabilities as libvirt sends it on the source (qmp.md 16.4).
  std::vector<MigrationCapabilityStatus> changes;
  for (const auto capability : {C::xbzrle, C::auto_converge, C::rdma_pin_all, C::postcopy_ram, C::multifd,
                                C::dirty_bitmaps, C::zero_copy_send, C::postcopy_preempt, C::mapped_ram})
    changes.push_back({capability, false});
  for (const auto capability : {C::pause_before_switchover, C::late_block_activate, C::return_path, C::switchover_ack})
    changes.push_back({capability, true});
  Capabilities before;
  before.set(C::events);
  const auto after = apply(before, changes, {}, {});
  REQUIRE(after.has_value());
  CHECK(after->has(C::events));
  CHECK(after->has(C::switchover_ack));
  CHECK_FALSE(after->has(C::multifd));
  CapabilityContext busy;
  busy.migration_in_progress = true;
  CHECK(apply(before, {}, {}, busy).error().text() == "There's a migration process in progress");
}
