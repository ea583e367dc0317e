// SPDX-License-Identifier: Apache-2.0
#include "vmstate/description.hpp"

namespace migrationd::vmstate {

std::string_view fault_name(TableFault fault) {
  switch (fault) {
    case TableFault::none:
      return "none";
    case TableFault::description_without_name:
      return "description_without_name";
    case TableFault::name_too_long:
      return "name_too_long";
    case TableFault::field_without_name:
      return "field_without_name";
    case TableFault::field_name_twice:
      return "field_name_twice";
    case TableFault::field_newer_than_description:
      return "field_newer_than_description";
    case TableFault::field_of_another_struct:
      return "field_of_another_struct";
    case TableFault::type_without_operations:
      return "type_without_operations";
    case TableFault::field_without_elements:
      return "field_without_elements";
    case TableFault::field_outside_object:
      return "field_outside_object";
    case TableFault::field_never_present:
      return "field_never_present";
    case TableFault::bound_too_large:
      return "bound_too_large";
    case TableFault::element_version_outside_child:
      return "element_version_outside_child";
    case TableFault::element_field_not_read:
      return "element_field_not_read";
    case TableFault::struct_version_outside_child:
      return "struct_version_outside_child";
    case TableFault::count_after_its_array:
      return "count_after_its_array";
    case TableFault::minimum_above_version:
      return "minimum_above_version";
    case TableFault::version_negative:
      return "version_negative";
    case TableFault::subsection_of_another_struct:
      return "subsection_of_another_struct";
    case TableFault::subsection_name_not_prefixed:
      return "subsection_name_not_prefixed";
    case TableFault::subsection_twice:
      return "subsection_twice";
    case TableFault::subsection_taken_by_another:
      return "subsection_taken_by_another";
    case TableFault::too_many_subsections:
      return "too_many_subsections";
    case TableFault::subsection_above_top_level:
      return "subsection_above_top_level";
    case TableFault::property_twice:
      return "property_twice";
    case TableFault::nested_too_deep:
      return "nested_too_deep";
  }
  return "none";
}

}  // namespace migrationd::vmstate
