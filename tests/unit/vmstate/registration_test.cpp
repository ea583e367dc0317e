// SPDX-License-Identifier: Apache-2.0
//
// What a set knows beside tables: aliases, devices without a table, readers of old versions, what forbids migration,
// machine versions, and the tables as JSON.
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/every_shape.hpp"
#include "vmstate/device_set.hpp"

#include <nlohmann/json.hpp>

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;

namespace {

struct Disk {
  std::uint32_t sector = 0;
  std::uint32_t journal = 0;
  bool send_journal = true;
  std::uint8_t queues = 4;
  std::uint32_t old_sector = 0;
  bool is_leaving = false;

  bool has_journal() const { return send_journal; }
  bool many_queues() const { return queues > 1; }
  // Version 1 counted in kilobytes.
  Result<void> load_old(std::uint32_t version, ByteReader& in) {
    MD_TRY(const std::uint16_t kilobytes, in.u16());
    sector = kilobytes * 2U;
    old_sector = version;
    return {};
  }
};
constexpr Field disk_fields[] = {field<&Disk::sector>("sector"),
                                 field<&Disk::queues>("queues").when<&Disk::many_queues>()};
constexpr Field journal_fields[] = {field<&Disk::journal>("journal")};
constexpr auto journal = describe<Disk>("disk/journal", 1).fields(journal_fields).needed_if<&Disk::has_journal>();
constexpr const Description* disk_parts[] = {&journal};
constexpr Property disk_properties[] = {property<&Disk::send_journal>("x-send-journal"),
                                        property<&Disk::queues>("queues")};
constexpr auto disk = describe<Disk>("disk", 5)
                          .fields(disk_fields)
                          .subsections(disk_parts)
                          .readable_from(3)
                          .old_versions_from<&Disk::load_old>(1)
                          .unplug_pending_if<&Disk::is_leaving>()
                          .with_properties(disk_properties);
static_assert(check(disk) == TableFault::none);
constexpr Property twice[] = {property<&Disk::queues>("queues"), property<&Disk::send_journal>("queues")};
static_assert(check(disk.with_properties(twice)) == TableFault::property_twice);
constexpr auto fixed = describe<Disk>("fixed", 1).fields(journal_fields).forbids_migration();

constexpr CompatProperty before_3[] = {{"disk", "x-send-journal", "off"}, {"elsewhere", "x", "off"}};
constexpr CompatProperty before_2[] = {{"disk", "queues", "1"}};
constexpr MachineVersion versions[] = {{"m-3.0", {}}, {"m-2.0", before_3}, {"m-1.0", before_2}};

SectionView section(std::string_view name, std::uint32_t instance, std::uint32_t version, const Bytes& body) {
  return {name, instance, version, body};
}

std::string body_hex(DeviceSet& set) {
  const auto saved = set.save();
  return saved ? to_hex(saved->front().body) : saved.error().text();
}

}  // namespace

TEST_CASE("Registration.an_alias_is_a_second_instance_id") {
  Disk object;
  DeviceSet set;
  Identity identity{"pci/1", {}, 7, 3};
  REQUIRE(set.add(disk, object, identity).has_value());
  const Bytes body = from_hex("00000009 02");
  LoadPass by_path(set);
  CHECK(by_path.load(section("pci/1/disk", 7, 5, body)).has_value());
  LoadPass by_name(set);
  CHECK(by_name.load(section("disk", 7, 5, body)).has_value());
  LoadPass unknown(set);
  CHECK_FALSE(unknown.load(section("pci/1/disk", 8, 5, body)).has_value());
  CHECK(set.add(disk, object, Identity{"pci/2", {}, 7, 2}).error().text() ==
        "device 'disk' has an alias since version 2, but is readable from 3 on");
}

TEST_CASE("Registration.a_compat_instance_can_be_given") {
  Disk first;
  Disk second;
  DeviceSet set;
  REQUIRE(set.add(disk, first, Identity{"pci/1", {}, {}, 0, 5}).has_value());
  REQUIRE(set.add(disk, second, Identity{"pci/2"}).has_value());
  LoadPass pass(set);
  REQUIRE(pass.load(section("disk", 5, 5, from_hex("00000009 02"))).has_value());
  REQUIRE(pass.load(section("disk", 1, 5, from_hex("0000000a 02"))).has_value());
  CHECK(first.sector == 9);
  CHECK(second.sector == 10);
}

TEST_CASE("Registration.a_device_without_a_table_writes_and_reads_its_own_bytes") {
  std::string state = "abc";
  std::uint32_t loaded_version = 0;
  LegacyHandlers handlers;
  handlers.version = 4;
  handlers.save = [&](ByteWriter& out) -> Result<void> {
    out.str8(state);
    return {};
  };
  handlers.load = [&](ByteReader& in, std::uint32_t version) -> Result<void> {
    MD_TRY(const auto text, in.str8());
    state = text;
    loaded_version = version;
    return {};
  };
  DeviceSet set;
  REQUIRE(set.add_legacy("old-style", handlers, 3).has_value());
  CHECK(set.add_legacy("old-style", handlers, 3).error().text() == "device 'old-style' instance 3 is registered twice");
  const auto saved = set.save();
  REQUIRE(saved.has_value());
  CHECK(to_hex(saved->front().body) == "03616263");
  CHECK(describe_stream(*saved, 4096) ==
        R"({"page_size": 4096, "devices": [{"name": "old-style", "instance_id": 3, "size": 4, "fields": [)"
        R"({"name": "data", "size": 4, "type": "buffer"}]}]})");
  LoadPass pass(set);
  REQUIRE(pass.load(section("old-style", 3, 2, from_hex("0178"))).has_value());
  CHECK(state == "x");
  CHECK(loaded_version == 2);
  LoadPass newer(set);
  CHECK(newer.load(section("old-style", 3, 5, from_hex("0178"))).error().text() ==
        "savevm: unsupported version 5 for 'old-style' v4");
  LoadPass cut(set);
  CHECK(cut.load(section("old-style", 3, 4, from_hex("0578")))
            .error()
            .text()
            .find("error while loading state for instance 0x3 of device 'old-style': ") == 0);
}

TEST_CASE("Registration.old_versions_go_to_their_reader") {
  Disk object;
  DeviceSet set;
  REQUIRE(set.add(disk, object).has_value());
  LoadPass old(set);
  REQUIRE(old.load(section("disk", 0, 2, from_hex("0008"))).has_value());
  CHECK(object.sector == 16);
  CHECK(object.old_sector == 2);
  LoadPass readable(set);
  REQUIRE(readable.load(section("disk", 0, 3, from_hex("00000005 04"))).has_value());
  CHECK(object.sector == 5);
  LoadPass too_old(set);
  CHECK(too_old.load(section("disk", 0, 0, from_hex("0008")))
            .error()
            .text()
            .find("incoming version_id 0 is too old for local minimum version_id  3") != std::string::npos);
}

TEST_CASE("Registration.a_removed_device_is_unknown") {
  Disk object;
  DeviceSet set;
  REQUIRE(set.add(disk, object).has_value());
  set.remove(&object);
  CHECK(set.size() == 0);
  CHECK(set.add(disk, object).has_value());
}

TEST_CASE("Registration.devices_to_be_unplugged_are_named") {
  Disk object;
  DeviceSet set;
  REQUIRE(set.add(disk, object, {"pci/1"}).has_value());
  CHECK(set.unplug_pending().empty());
  object.is_leaving = true;
  CHECK(set.unplug_pending() == std::vector<std::string>{"pci/1/disk"});
}

TEST_CASE("Blockers.are_shown_oldest_first_and_the_newest_is_the_refusal") {
  Disk a;
  Disk b;
  DeviceSet set;
  REQUIRE(set.add(fixed, a, {"pci/3"}).has_value());
  Blockers& blockers = set.blockers();
  const auto first = blockers.add("the disk is borrowed");
  const auto second = blockers.add("the cable is short", MigrationMode::normal);
  const auto third = blockers.add("no memory to keep", Modes(MigrationMode::cpr_reboot) | MigrationMode::cpr_transfer);
  REQUIRE((first && second && third));
  CHECK(set.blocked_reasons() ==
        std::vector<std::string>{"the disk is borrowed", "the cable is short", "non-migratable device: pci/3/fixed"});
  CHECK(set.blocked_reasons(MigrationMode::cpr_reboot) ==
        std::vector<std::string>{"the disk is borrowed", "no memory to keep", "non-migratable device: pci/3/fixed"});
  CHECK(blockers.refusal(MigrationMode::normal).error().text() == "the cable is short");
  CHECK(set.may_migrate().error().text() == "State blocked by non-migratable device 'pci/3/fixed'");
  set.remove(&a);
  CHECK(set.save().error().text() == "the cable is short");
  CHECK(set.save(MigrationMode::cpr_transfer).error().text() == "no memory to keep");
  blockers.remove(*second);
  CHECK(set.may_migrate().error().text() == "the disk is borrowed");
  blockers.remove(*first);
  CHECK(set.may_migrate().has_value());
  CHECK(set.save().has_value());
  REQUIRE(set.add(disk, b).has_value());
}

TEST_CASE("Blockers.cannot_be_added_while_a_migration_runs_or_when_only_migratable") {
  Disk object;
  DeviceSet set;
  Blockers& blockers = set.blockers();
  blockers.set_busy(true);
  CHECK(blockers.add("x").error().text() == "disallowing migration blocker (migration/snapshot in progress) for: x");
  blockers.set_busy(false);
  blockers.set_only_migratable(true);
  CHECK(blockers.add("x").error().text() == "disallowing migration blocker (--only-migratable) for: x");
  CHECK(blockers.add("x", MigrationMode::cpr_reboot).has_value());
  CHECK(blockers.add_internal("y").has_value());
  CHECK(set.add(fixed, object).error().text() == "Device fixed is not migratable, but --only-migratable was specified");
  CHECK(set.add(disk, object).has_value());
}

TEST_CASE("Machine.versions_switch_what_is_sent") {
  Disk object;
  DeviceSet set;
  REQUIRE(set.add(disk, object).has_value());
  const std::string whole = body_hex(set);
  REQUIRE(set.become("m-3.0", versions).has_value());
  CHECK(body_hex(set) == whole);
  CHECK(whole ==
        "00000000"
        "04"
        "050c6469736b2f6a6f75726e616c"
        "00000001"
        "00000000");
  REQUIRE(set.become("m-2.0", versions).has_value());
  CHECK(body_hex(set) ==
        "00000000"
        "04");
  // What was true before 2.0 comes on top of what was true before 3.0.
  REQUIRE(set.become("m-1.0", versions).has_value());
  CHECK(body_hex(set) == "00000000");
  CHECK(object.queues == 1);
}

TEST_CASE("Machine.refuses_unknown_versions_properties_and_values") {
  Disk object;
  DeviceSet set;
  REQUIRE(set.add(disk, object).has_value());
  CHECK(set.become("m-9.9", versions).error().text() == "unknown machine version 'm-9.9'");
  const CompatProperty unknown[] = {{"disk", "x-none", "off"}};
  const CompatProperty no_switch[] = {{"disk", "x-send-journal", "maybe"}};
  const CompatProperty too_large[] = {{"disk", "queues", "256"}};
  const CompatProperty hexadecimal[] = {{"disk", "queues", "0x10"}};
  const auto become = [&set](std::span<const CompatProperty> rows) {
    const MachineVersion one[] = {{"one", rows}};
    const auto done = set.become("one", one);
    return done ? std::string() : done.error().text();
  };
  CHECK(become(unknown) == "device 'disk' has no property 'x-none'");
  CHECK(become(no_switch) == "property 'x-send-journal' cannot be 'maybe'");
  CHECK(become(too_large) == "property 'queues' cannot be '256'");
  CHECK(object.queues == 4);
  CHECK(become(hexadecimal).empty());
  CHECK(object.queues == 16);
}

TEST_CASE("Dump.tells_what_a_reader_has_to_know") {
  Disk object;
  Shapes shapes;
  DeviceSet set;
  REQUIRE(set.add(disk, object, {"pci/1"}).has_value());
  REQUIRE(set.add(shapes_description, shapes).has_value());
  REQUIRE(set.add_legacy("old-style", {}).has_value());
  const auto json = nlohmann::json::parse(set.dump_tables("m-3.0"));
  CHECK(json["device-tables"] == 1);
  CHECK(json["machine"] == "m-3.0");
  REQUIRE(json["devices"].size() == 3);
  const auto& one = json["devices"][0];
  CHECK(one["name"] == "pci/1/disk");
  CHECK(one["vmsd_name"] == "disk");
  CHECK(one["minimum_version"] == 3);
  CHECK(one["minimum_version_old"] == 1);
  CHECK(one["fields"][1]["conditional"] == true);
  CHECK(one["subsections"][0]["optional"] == true);
  std::map<std::string, nlohmann::json> fields;
  for (const auto& row : json["devices"][1]["fields"]) fields[row["name"].get<std::string>()] = row;
  CHECK(fields["fixed_map"]["size"] == 16);
  CHECK(fields["laps"]["count"] == "lap_count");
  CHECK(fields["laps"]["bound"] == 64);
  CHECK(fields["triples"]["times"] == 3);
  CHECK(fields["slots"]["shape"] == "pointers");
  CHECK(fields["mark"]["struct_version"] == 2);
  CHECK(fields["mappings"]["key"]["vmsd_name"] == "range");
  CHECK(fields["mappings"]["bound"] == 8);
  CHECK(fields["gone"]["until"] == 1);
  CHECK(fields["budget is sane"]["required"] == true);
  CHECK(json["devices"][2]["legacy"] == true);
}
