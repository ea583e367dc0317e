// SPDX-License-Identifier: Apache-2.0
//
// Streams altered one thing at a time, as they were fed to a real QEMU 10.0.13, with its results
// (docs/formats/vmstate.md). Two of them are refused here that it takes: the same section and the same subsection
// twice.
//
// The devices are those of a recorded stream: the PS/2 keyboard controller and the firmware configuration. The stream
// is taken apart by the same decoders that the daemon uses.
#include "protocol/stream/sections.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/everything.hpp"
#include "vmstate/device_set.hpp"

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;

namespace {

// --- the devices ------------------------------------------------------------------------------------------
struct Kbd {
  std::uint8_t write_cmd = 0, status = 0x1c, mode = 0x61, pending_tmp = 0;
  std::uint32_t migration_flags = 0, obsrc = 1;
  std::uint8_t obdata = 0xfa, cbdata = 0;
  bool is_extended() const { return obsrc != 0; }
};
struct Isa {
  Kbd kbd;
};
constexpr Field extended_fields[] = {field<&Kbd::migration_flags>("migration_flags"), field<&Kbd::obsrc>("obsrc"),
                                     field<&Kbd::obdata>("obdata"), field<&Kbd::cbdata>("cbdata")};
constexpr auto extended =
    describe<Kbd>("pckbd/extended_state", 0).fields(extended_fields).needed_if<&Kbd::is_extended>();
constexpr const Description* kbd_parts[] = {&extended};
constexpr Field kbd_fields[] = {field<&Kbd::write_cmd>("write_cmd"), field<&Kbd::status>("status"),
                                field<&Kbd::mode>("mode"), field<&Kbd::pending_tmp>("pending_tmp")};
constexpr auto kbd_table = describe<Kbd>("pckbd", 3).fields(kbd_fields).subsections(kbd_parts);
constexpr Field isa_fields[] = {structure<&Isa::kbd>("kbd", kbd_table)};
constexpr auto isa_table = describe<Isa>("pckbd", 3).fields(isa_fields).readable_from(3);

struct FwCfg {
  std::uint16_t entry = 0x0e;
  std::uint16_t narrow_offset = 0;
  std::uint32_t offset = 2;
  std::uint64_t dma_addr = 0;
  std::uint64_t table = 0x20000, linker = 0x1000, rsdp = 0x14;
};
constexpr Field dma_fields[] = {field<&FwCfg::dma_addr>("dma_addr")};
constexpr auto dma = describe<FwCfg>("fw_cfg/dma", 0).fields(dma_fields);
constexpr Field acpi_fields[] = {field<&FwCfg::table>("table_mr_size"), field<&FwCfg::linker>("linker_mr_size"),
                                 field<&FwCfg::rsdp>("rsdp_mr_size")};
constexpr auto acpi = describe<FwCfg>("fw_cfg/acpi_mr", 1).fields(acpi_fields).readable_from(1);
constexpr const Description* fw_parts[] = {&dma, &acpi};
constexpr Field fw_fields[] = {field<&FwCfg::entry>("cur_entry"),
                               field<&FwCfg::narrow_offset>("cur_offset").until(1).shares_name(),
                               field<&FwCfg::offset>("cur_offset").since(2).shares_name()};
constexpr auto fw_table = describe<FwCfg>("fw_cfg", 2).fields(fw_fields).subsections(fw_parts).readable_from(1);
static_assert(check(isa_table) == TableFault::none);
static_assert(check(fw_table) == TableFault::none);

// As recorded from a QEMU 10.0.13.
constexpr std::string_view kbd_header = "04 0000001d 05 70636b6264 00000000 00000003 ";
constexpr std::string_view kbd_state = "00 1c 61 00 ";
constexpr std::string_view kbd_extended =
    "05 14 70636b62642f657874656e6465645f7374617465 00000000 00000000 00000001 fa 00 ";
constexpr std::string_view kbd_footer = "7e 0000001d ";
constexpr std::string_view fw_header = "04 0000000a 06 66775f636667 00000000 00000002 ";
constexpr std::string_view fw_state = "000e 00000002 ";
constexpr std::string_view fw_dma = "05 0a 66775f6366672f646d61 00000000 0000000000000000 ";
constexpr std::string_view fw_acpi =
    "05 0e 66775f6366672f616370695f6d72 00000001 0000000000020000 0000000000001000 0000000000000014 ";
constexpr std::string_view fw_footer = "7e 0000000a ";

std::string text(std::initializer_list<std::string_view> parts) {
  std::string out;
  for (const std::string_view part : parts) out += part;
  return out;
}
const std::string kbd = text({kbd_header, kbd_state, kbd_extended, kbd_footer});
const std::string fw_cfg = text({fw_header, fw_state, fw_dma, fw_acpi, fw_footer});

// --- a destination ----------------------------------------------------------------------------------------
Result<void> load_section(LoadPass& pass, ByteReader& in) {
  const auto element = stream::decode_element(in.rest());
  if (element.failed()) return element.error();
  if (!element.is_ready()) return wire_error("the stream ends inside a section's head");
  const auto* const full = std::get_if<stream::SectionFull>(&element.value());
  if (full == nullptr) return wire_error("no section");
  MD_CHECK(in.skip(element.consumed()));
  const auto& header = full->header;
  MD_CHECK(pass.load(header.name, header.instance_id, header.version_id, in));
  const auto footer = stream::decode_footer(in.rest(), header.section_id, header.name);
  if (footer.failed()) return footer.error();
  if (!footer.is_ready()) return wire_error("the stream ends inside a footer");
  return in.skip(footer.consumed());
}

// "" when the stream is accepted, else the error.
struct Destination {
  Isa isa;
  FwCfg fw;
  std::string load(const std::string& hex_text) {
    DeviceSet set;
    if (!set.add(isa_table, isa) || !set.add(fw_table, fw)) return "not registered";
    LoadPass pass(set);
    const Bytes bytes = from_hex(hex_text);
    ByteReader in(bytes);
    while (!in.at_end()) {
      auto loaded = load_section(pass, in);
      if (!loaded) return loaded.error().text();
    }
    return "";
  }
};

std::string load(const std::string& hex_text) {
  Destination destination;
  return destination.load(hex_text);
}

std::string replaced(std::string in, std::string_view what, std::string_view with) {
  const auto at = in.find(what);
  REQUIRE(at != std::string::npos);
  return in.replace(at, what.size(), with);
}

constexpr std::string_view kbd_error = "error while loading state for instance 0x0 of device 'pckbd': ";

}  // namespace

TEST_CASE("Altered.the_recorded_sections_load_and_are_written_alike") {
  Destination destination;
  CHECK(destination.load(kbd + fw_cfg) == "");
  CHECK(destination.fw.rsdp == 0x14);
  CHECK(saved_hex(isa_table, destination.isa) == to_hex(from_hex(text({kbd_state, kbd_extended}))));
  CHECK(saved_hex(fw_table, destination.fw) == to_hex(from_hex(text({fw_state, fw_dma, fw_acpi}))));
}

TEST_CASE("Altered.devices_in_any_order_and_any_section_id_are_accepted") {
  CHECK(load(fw_cfg + kbd) == "");
  CHECK(load(text({"04 deadbeef 05 70636b6264 00000000 00000003 ", kbd_state, kbd_extended, "7e deadbeef"})) == "");
}

TEST_CASE("Altered.the_same_section_twice_is_refused") {
  CHECK(load(kbd + kbd) == "device 'pckbd' instance 0 came twice");
}

TEST_CASE("Altered.an_unknown_device_or_instance_is_refused") {
  const std::string hint =
      ". Make sure that your current VM setup matches your saved VM setup, including any hotplugged "
      "devices";
  CHECK(load(replaced(kbd, "70636b6264 00000000", "70636b6265 00000000")) ==
        "Unknown savevm section or instance 'pckbe' 0" + hint);
  CHECK(load(replaced(kbd, "70636b6264 00000000", "70636b6264 00000007")) ==
        "Unknown savevm section or instance 'pckbd' 7" + hint);
}

TEST_CASE("Altered.versions_outside_the_range_are_refused") {
  CHECK(load(replaced(kbd, "00000003", "00000004")) == "savevm: unsupported version 4 for 'pckbd' v3");
  CHECK(load(replaced(kbd, "00000003", "00000002")) ==
        std::string(kbd_error) + "pckbd: incoming version_id 2 is too old for local minimum version_id  3");
  // Version 1 had the narrow offset.
  Destination destination;
  CHECK(destination.load(text({"04 0000000a 06 66775f636667 00000000 00000001 000e 0007", fw_dma, fw_footer})) == "");
  CHECK(destination.fw.narrow_offset == 7);
}

TEST_CASE("Altered.footers_must_be_there_and_repeat_the_id") {
  CHECK(load(replaced(kbd, "7e 0000001d", "7f 0000001d")).find("Missing section footer for pckbd") == 0);
  CHECK(load(replaced(kbd, "7e 0000001d", "7e 0000001e")) ==
        "Mismatched section id in footer for pckbd: read 0x1e expected 0x1d");
  CHECK(load(text({kbd_header, kbd_state, kbd_extended})) == "the stream ends inside a footer");
}

TEST_CASE("Altered.a_dropped_subsection_is_accepted") {
  Destination destination;
  destination.isa.kbd.obsrc = 9;
  CHECK(destination.load(text({kbd_header, kbd_state, kbd_footer})) == "");
  CHECK(destination.isa.kbd.obsrc == 9);  // pre_load is where a default would be set
  CHECK(load(text({fw_header, fw_state, fw_acpi, fw_footer})) == "");
}

TEST_CASE("Altered.exchanged_subsections_are_accepted") {
  Destination destination;
  destination.fw.table = 0;
  CHECK(destination.load(text({fw_header, fw_state, fw_acpi, fw_dma, fw_footer})) == "");
  CHECK(destination.fw.table == 0x20000);
}

TEST_CASE("Altered.the_same_subsection_twice_is_refused") {
  CHECK(load(text({fw_header, fw_state, fw_dma, fw_dma, fw_acpi, fw_footer}))
            .find("subsection 'fw_cfg/dma' came twice") != std::string::npos);
}

TEST_CASE("Altered.an_unknown_subsection_of_the_right_prefix_is_refused") {
  CHECK(load(replaced(kbd, "7374617465 ", "7374617466 ")) ==
        std::string(kbd_error) + "Failed to load pckbd:kbd: unknown subsection 'pckbd/extended_statf'");
}

TEST_CASE("Altered.a_subsection_of_another_prefix_or_too_short_stays_in_the_stream") {
  CHECK(load(replaced(kbd, "70636b62642f", "70636b63642f")).find("Missing section footer for pckbd") == 0);
  CHECK(load(text({kbd_header, kbd_state, "05 03 706362 00000000 ", kbd_footer}))
            .find("Missing section footer for pckbd") == 0);
}

TEST_CASE("Altered.a_subsection_of_a_newer_version_is_refused") {
  CHECK(load(replaced(kbd, "7374617465 00000000", "7374617465 00000001")) ==
        std::string(kbd_error) +
            "Failed to load pckbd:kbd: Failed to load subsection pckbd/extended_state: pckbd/extended_state: incoming "
            "version_id 1 is too new for local version_id 0");
}

TEST_CASE("Altered.a_stream_cut_anywhere_is_refused") {
  const std::string whole = to_hex(from_hex(kbd));
  for (std::size_t length = 2; length < whole.size(); length += 2) CHECK(load(whole.substr(0, length)) != "");
}
