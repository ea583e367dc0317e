// SPDX-License-Identifier: Apache-2.0
#include "vmstate/device_set.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/everything.hpp"

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;

namespace {

struct Part {
  std::uint8_t value = 0;
  bool wanted() const { return value != 0; }
};
constexpr Field part_fields[] = {field<&Part::value>("value")};
constexpr auto part = describe<Part>("part", 2).fields(part_fields).readable_from(1);
constexpr auto bus = describe<Part>("bus", 1).fields(part_fields).with_priority(Priority::pci_bus);
constexpr auto iommu = describe<Part>("iommu", 1).fields(part_fields).with_priority(Priority::iommu);
constexpr auto optional = describe<Part>("optional", 1).fields(part_fields).needed_if<&Part::wanted>();
constexpr auto early = describe<Part>("early", 1).fields(part_fields).sent_early();
constexpr auto fixed = describe<Part>("fixed", 1).fields(part_fields).forbids_migration();

std::vector<std::string> names(const std::vector<SavedSection>& sections) {
  std::vector<std::string> out;
  for (const auto& section : sections) out.push_back(section.name + "/" + std::to_string(section.instance_id));
  return out;
}

SectionView view(std::string_view name, std::uint32_t instance, std::uint32_t version, const Bytes& body) {
  return {name, instance, version, body};
}

}  // namespace

TEST_CASE("DeviceSet.orders_by_priority_then_registration_and_numbers_instances") {
  Part parts[6];
  DeviceSet set(10);
  REQUIRE(set.add(part, parts[0]).has_value());
  REQUIRE(set.add(iommu, parts[1]).has_value());
  REQUIRE(set.add(part, parts[2], {"", 5}).has_value());
  REQUIRE(set.add(bus, parts[3]).has_value());
  REQUIRE(set.add(part, parts[4]).has_value());
  REQUIRE(set.add(part, parts[5], {"0000:00:03.0", {}}).has_value());
  const auto saved = set.save();
  REQUIRE(saved.has_value());
  CHECK(names(*saved) ==
        std::vector<std::string>{"bus/0", "iommu/0", "part/0", "part/5", "part/6", "0000:00:03.0/part/0"});
  CHECK((*saved)[0].section_id == 13);
  CHECK((*saved)[2].section_id == 10);
  CHECK((*saved)[2].version_id == 2);
  CHECK(to_hex((*saved)[2].body) == "00");
}

TEST_CASE("DeviceSet.refuses_a_pair_twice_and_a_path_that_is_too_long") {
  Part a;
  Part b;
  DeviceSet set;
  REQUIRE(set.add(part, a).has_value());
  CHECK(set.add(part, b, {"", 0}).error().text() == "device 'part' instance 0 is registered twice");
  CHECK(set.add(part, b, {std::string(251, 'p'), {}}).error().text().find("Path too long for VMState (ppp") == 0);
  CHECK(set.add(part, b, {std::string(250, 'p'), {}}).has_value());
}

TEST_CASE("DeviceSet.leaves_out_what_is_not_needed_and_puts_early_ones_first") {
  Part parts[4];
  DeviceSet set;
  REQUIRE(set.add(bus, parts[0]).has_value());
  REQUIRE(set.add(optional, parts[1]).has_value());
  REQUIRE(set.add(early, parts[2]).has_value());
  REQUIRE(set.add(part, parts[3]).has_value());
  CHECK(names(*set.save()) == std::vector<std::string>{"early/0", "bus/0", "part/0"});
  CHECK((*set.save())[0].early);
  parts[1].value = 1;
  const auto saved = *set.save();
  CHECK(names(saved) == std::vector<std::string>{"early/0", "bus/0", "optional/0", "part/0"});
  CHECK(saved[3].section_id == 3);  // the id of one that sends nothing is consumed all the same
}

TEST_CASE("DeviceSet.a_device_that_forbids_migration_blocks_both_ways") {
  Part a;
  DeviceSet set;
  REQUIRE(set.add(fixed, a).has_value());
  CHECK(set.blocked_reasons() == std::vector<std::string>{"non-migratable device: fixed"});
  CHECK(set.save().error().text() == "State blocked by non-migratable device 'fixed'");
  LoadPass pass(set);
  CHECK_FALSE(pass.load(view("fixed", 0, 1, from_hex("01"))).has_value());
  CHECK(a.value == 0);
}

TEST_CASE("LoadPass.finds_devices_by_id_and_instance_in_any_order") {
  Part parts[3];
  DeviceSet set;
  REQUIRE(set.add(part, parts[0]).has_value());
  REQUIRE(set.add(part, parts[1]).has_value());
  REQUIRE(set.add(part, parts[2], {"pci/1", {}}).has_value());
  LoadPass pass(set);
  REQUIRE(pass.load(view("pci/1/part", 0, 2, from_hex("03"))).has_value());
  REQUIRE(pass.load(view("part", 1, 1, from_hex("02"))).has_value());
  CHECK(pass.missing() == std::vector<std::string>{"part"});
  REQUIRE(pass.load(view("part", 0, 2, from_hex("01"))).has_value());
  CHECK(pass.missing().empty());
  CHECK(parts[0].value == 1);
  CHECK(parts[1].value == 2);
  CHECK(parts[2].value == 3);
}

TEST_CASE("LoadPass.finds_a_device_with_a_path_by_its_bare_name") {
  Part parts[2];
  DeviceSet set;
  REQUIRE(set.add(part, parts[0], {"pci/1", {}}).has_value());
  REQUIRE(set.add(part, parts[1], {"pci/2", {}}).has_value());
  LoadPass pass(set);
  REQUIRE(pass.load(view("part", 1, 2, from_hex("07"))).has_value());
  CHECK(parts[1].value == 7);
}

TEST_CASE("LoadPass.error_texts_are_those_management_software_knows") {
  Part a;
  DeviceSet set;
  REQUIRE(set.add(part, a).has_value());
  LoadPass pass(set);
  CHECK(pass.load(view("pa\x1brt", 0, 2, {})).error().text() ==
        "Unknown savevm section or instance 'pa\\x1brt' 0. Make sure that your current VM setup matches your saved VM "
        "setup, including any hotplugged devices");
  CHECK(pass.load(view("part", 9, 2, {})).error().text().find("Unknown savevm section or instance 'part' 9.") == 0);
  CHECK(pass.load(view("part", 0, 3, {})).error().text() == "savevm: unsupported version 3 for 'part' v2");
  CHECK(pass.load(view("part", 0, 2, {})).error().text() ==
        "error while loading state for instance 0x0 of device 'part': Failed to load part:value: ends too early: 1 "
        "bytes wanted at offset 0x0, 0 left");
}

TEST_CASE("LoadPass.refuses_bytes_left_over_and_a_second_section") {
  Part a;
  DeviceSet set;
  REQUIRE(set.add(part, a).has_value());
  LoadPass first(set);
  CHECK(first.load(view("part", 0, 2, from_hex("0102"))).error().text() ==
        "Missing section footer for part: 1 bytes at offset 0x1 of its state are left over");
  LoadPass second(set);
  REQUIRE(second.load(view("part", 0, 2, from_hex("01"))).has_value());
  CHECK(second.load(view("part", 0, 2, from_hex("01"))).error().text() == "device 'part' instance 0 came twice");
}

TEST_CASE("LoadPass.leaves_a_stream_at_the_footer") {
  Part a;
  DeviceSet set;
  REQUIRE(set.add(part, a).has_value());
  LoadPass pass(set);
  const Bytes bytes = from_hex("09 7e 00000000");
  ByteReader in(bytes);
  REQUIRE(pass.load("part", 0, 1, in).has_value());
  CHECK(in.remaining() == 5);
  CHECK(a.value == 9);
}
